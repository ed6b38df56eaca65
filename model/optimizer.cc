#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/adamw.h"
#include "kernels/reduce.h"

namespace transxssm {
namespace {

GradientReducer make_reducer(const ParameterStore& store, Mesh& mesh, int64_t bucket_elements) {
  std::vector<FlatRange> ranges;
  for (const Parameter& p : store.all()) ranges.push_back({p.offset, p.num_elements()});
  if (bucket_elements == 0) bucket_elements = default_bucket_elements(mesh.shape().dp);
  GradientReducer reducer(mesh.dp(), store.flat_gradient(), make_buckets(ranges, bucket_elements));
  for (const Parameter& p : store.all())
    if (p.spec.gradient_sum_share > 1)
      reducer.add_shared({p.offset, p.num_elements()}, mesh.tp_share(p.spec.gradient_sum_share));
  return reducer;
}

Tensor flat(const Tensor& tensor) {
  return tensor.reshape({tensor.num_elements()});
}

}  // namespace

Optimizer::Optimizer(Stream& stream, ParameterStore& store, Mesh& mesh, const OptimizerOptions& options)
    : stream_(stream),
      store_(store),
      mesh_(mesh),
      options_(options),
      reducer_(make_reducer(store, mesh, options.bucket_elements)) {}

void Optimizer::reduce_gradients() {
  reducer_.reduce_all();
  for (const Parameter& p : store_.all())
    if (p.spec.tied_pair) mesh_.embedding_pair().all_reduce(p.gradient);
}

double Optimizer::gradient_norm() {
  double squares = 0;
  for (const Parameter& p : store_.all())
    if (p.spec.owner) squares += sum_of_squares(stream_, flat(p.gradient));
  mesh_.model().all_reduce(Tensor(&squares, DType::f64, {1}));
  return std::sqrt(squares);
}

void Optimizer::update(double learning_rate, double gradient_norm, int64_t step) {
  const double clip =
      options_.clip_norm > 0 ? std::min(1.0, options_.clip_norm / (gradient_norm + 1e-6)) : 1.0;
  for (const Parameter& p : store_.all())
    run(stream_, AdamW{.weight = flat(p.weight),
                       .gradient = flat(p.gradient),
                       .exp_avg = flat(p.exp_avg),
                       .exp_avg_sq = flat(p.exp_avg_sq),
                       .learning_rate = learning_rate,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.eps,
                       .weight_decay = p.spec.decays() ? options_.weight_decay : 0,
                       .gradient_scale = clip,
                       .step = step});
}

std::string Optimizer::first_not_finite() const {
  for (const Parameter& p : store_.all())
    if (count_not_finite(stream_, flat(p.gradient)) > 0) return p.spec.name;
  return {};
}

double LearningRateSchedule::at(int64_t step) const {
  if (step <= warmup_steps) return peak * static_cast<double>(step) / static_cast<double>(warmup_steps);
  const double progress =
      std::min(1.0, static_cast<double>(step - warmup_steps) /
                        static_cast<double>(std::max<int64_t>(1, num_steps - warmup_steps)));
  switch (kind) {
    case LearningRateKind::constant:
      return peak;
    case LearningRateKind::linear:
      return peak * (1 - (1 - min_fraction) * progress);
    case LearningRateKind::cosine:
      return peak * (min_fraction + (1 - min_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  }
  throw InternalError("unknown learning-rate schedule");
}

}  // namespace transxssm
