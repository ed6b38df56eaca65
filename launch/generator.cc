#include "launch/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/rng.h"

namespace transxssm {

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t draw) {
  for (float logit : logits)
    if (!std::isfinite(logit))
      throw NumericsError("a logit is {}: the weights of this checkpoint are not usable", logit);
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return static_cast<int32_t>(likeliest - logits.begin());

  std::vector<double> probability(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    probability[i] = std::exp((static_cast<double>(logits[i]) - *likeliest) / options.temperature);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return probability[static_cast<size_t>(a)] > probability[static_cast<size_t>(b)];
  });
  const double total = std::accumulate(probability.begin(), probability.end(), 0.0);
  double kept = 0;
  size_t candidates = 0;
  while (candidates < order.size() && kept < options.top_p * total)
    kept += probability[static_cast<size_t>(order[candidates++])];

  double remaining = Rng(options.seed, "generate").uniform(draw) * kept;
  for (size_t i = 0; i + 1 < candidates; ++i) {
    remaining -= probability[static_cast<size_t>(order[i])];
    if (remaining < 0) return order[i];
  }
  return order[std::max<size_t>(candidates, 1) - 1];
}

Generator::Generator(const ModelConfig& config, const MeshShape& shape, Communicator& world, Stream& stream,
                     int64_t rows, int64_t max_tokens, const Precision& precision)
    : stream_(stream),
      mesh_(world, shape),
      rows_(rows),
      network_(config, Shard::of(config, shape.tp, mesh_.coordinate().tp),
               cut_layers(config, 1, shape.pp)[static_cast<size_t>(mesh_.coordinate().pp)], mesh_.tp(),
               max_tokens, &mesh_.tp_share(Shard::of(config, shape.tp, 0).groups.num_copies), precision,
               &stream),
      logits_(static_cast<size_t>(rows * config.vocab_size)) {
  network_.parameters().allocate(false, stream.device());
  work_ = std::make_unique<DecodingWork>(stream, network_, rows);
  one_token_each_ =
      std::make_unique<Pipeline>(mesh_, gpipe_schedule(shape.pp, 1), Shape{rows, 1, config.d_model},
                                 precision.residual, stream.device());
}

std::vector<CheckpointTensor> Generator::checkpoint_tensors() {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& p : network_.parameters().all())
    tensors.push_back({.name = p.spec.name,
                       .kind = TensorKind::master,
                       .global_shape = p.spec.global_shape,
                       .offset = p.spec.box.offset,
                       .extent = p.spec.box.extent,
                       .data = p.weight,
                       .owner = p.spec.owner,
                       .stream = &stream_});
  return tensors;
}

Tensor Generator::next_logits(const Tensor& ids, int64_t first_row) {
  const int64_t rows = ids.size(0), tokens = ids.size(1);
  work_->begin(ids, first_row);
  if (tokens == 1 && rows == rows_) {
    one_token_each_->run_forward(*work_, 1);
  } else {
    Pipeline prefill(mesh_, gpipe_schedule(mesh_.shape().pp, 1), {rows, tokens, network_.config().d_model},
                     network_.precision().residual, stream_.device());
    prefill.run_forward(*work_, 1);
  }
  const Tensor logits(logits_.data(), DType::f32, {rows, network_.config().vocab_size});
  if (mesh_.is_last_stage()) {
    transfer(stream_, work_->logits(), logits);
    stream_.synchronize();
  }
  mesh_.pp().broadcast(logits, mesh_.shape().pp - 1);
  return logits;
}

void Generator::generate(std::span<const std::vector<int32_t>> prompts, int64_t count,
                         const SamplingOptions& options,
                         const std::function<bool(int64_t row, int32_t token)>& on_token) {
  const auto vocabulary = static_cast<size_t>(network_.config().vocab_size);
  std::vector<int32_t> next(prompts.size());
  std::vector<bool> open(prompts.size(), true);
  auto draw = [&](int64_t row, const float* logits, int64_t i) {
    const auto r = static_cast<size_t>(row);
    if (!open[r]) return;
    next[r] = sample_token({logits, vocabulary}, options,
                           static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(i));
    mesh_.world().broadcast(Tensor(&next[r], DType::i32, {1}),
                            0);  // hosts of unlike kinds may round differently
    open[r] = on_token(row, next[r]);
  };
  // Prompts of different length go in one by one, then all rows step together.
  for (size_t r = 0; r < prompts.size(); ++r) {
    std::vector<int32_t> ids = prompts[r];
    const auto row = static_cast<int64_t>(r);
    draw(
        row,
        next_logits(Tensor(ids.data(), DType::i32, {1, static_cast<int64_t>(ids.size())}), row).data<float>(),
        0);
  }
  for (int64_t i = 1; i < count && std::find(open.begin(), open.end(), true) != open.end(); ++i) {
    const Tensor logits = next_logits(Tensor(next.data(), DType::i32, {rows_, 1}));
    for (int64_t row = 0; row < rows_; ++row) draw(row, logits.select(0, row).data<float>(), i);
  }
}

}  // namespace transxssm
