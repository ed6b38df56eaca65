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
  std::sort(ranges.begin(), ranges.end(),
            [](const FlatRange& a, const FlatRange& b) { return a.begin < b.begin; });
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

// Runs of owned parameters in flat memory; the gaps in a run are zeros.
std::vector<Tensor> owned_gradients(const ParameterStore& store) {
  std::vector<const Parameter*> parameters;
  for (const Parameter& p : store.all()) parameters.push_back(&p);
  std::sort(parameters.begin(), parameters.end(),
            [](const Parameter* a, const Parameter* b) { return a->offset < b->offset; });
  std::vector<Tensor> runs;
  int64_t begin = -1, end = 0;
  const auto close = [&] {
    if (begin >= 0) runs.push_back(store.flat_gradient().slice(0, begin, end - begin));
    begin = -1;
  };
  for (const Parameter* p : parameters) {
    if (!p->spec.owner) {
      close();
      continue;
    }
    if (begin < 0) begin = p->offset;
    end = p->offset + p->num_elements();
  }
  close();
  return runs;
}

}  // namespace

Optimizer::Optimizer(Stream& stream, ParameterStore& store, Mesh& mesh, const OptimizerOptions& options)
    : stream_(stream),
      store_(store),
      mesh_(mesh),
      options_(options),
      owned_(owned_gradients(store)),
      reducer_(make_reducer(store, mesh, options.bucket_elements)) {}

void Optimizer::reduce_gradients() {
  reducer_.finish();
  for (const Parameter& p : store_.all())
    if (p.spec.tied_pair) mesh_.embedding_pair().all_reduce(p.gradient);
}

double Optimizer::gradient_norm() {
  double squares = sum_of_squares(stream_, owned_);
  mesh_.model().all_reduce(Tensor(&squares, DType::f64, {1}));
  return std::sqrt(squares);
}

void Optimizer::update(double learning_rate, double gradient_norm, int64_t update) {
  const double clip =
      options_.clip_norm > 0 ? std::min(1.0, options_.clip_norm / (gradient_norm + 1e-6)) : 1.0;
  const auto update_range = [&](const Parameter& range, double weight_decay) {
    if (range.weight.num_elements() == 0) return;
    run(stream_, AdamW{.weight = range.weight,
                       .gradient = range.gradient,
                       .exp_avg = range.exp_avg,
                       .exp_avg_sq = range.exp_avg_sq,
                       .rounded = range.operand.dtype() == DType::f32 ? Tensor{} : range.operand,
                       .learning_rate = learning_rate,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.eps,
                       .weight_decay = weight_decay,
                       .gradient_scale = clip,
                       .step = update});
  };
  update_range(store_.vectors(), 0);
  update_range(store_.matrices(), options_.weight_decay);
  store_.operands_changed();
}

std::string Optimizer::first_not_finite() const {
  for (const Parameter& p : store_.all())
    if (count_not_finite(stream_, flat(p.gradient)) > 0) return p.spec.name;
  return {};
}

double LearningRateSchedule::at(int64_t tokens) const {
  const auto units = [&](int64_t count) { return static_cast<double>(count) / static_cast<double>(unit); };
  if (warmup_tokens > 0 && tokens <= warmup_tokens) return peak * units(tokens) / units(warmup_tokens);
  const double progress = tokens >= end_tokens ? 1.0
                                               : static_cast<double>(tokens - warmup_tokens) /
                                                     static_cast<double>(end_tokens - warmup_tokens);
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
