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
                     int64_t max_tokens)
    : stream_(stream),
      mesh_(world, shape),
      network_(config, Shard::of(config, shape.tp, mesh_.coordinate().tp),
               cut_layers(config, 1, shape.pp)[static_cast<size_t>(mesh_.coordinate().pp)], mesh_.tp(),
               max_tokens, &mesh_.tp_share(Shard::of(config, shape.tp, 0).groups.num_copies)),
      logits_(static_cast<size_t>(config.vocab_size)) {
  network_.parameters().allocate(false);
  work_ = std::make_unique<DecodingWork>(stream, network_, 1);
  single_token_ =
      std::make_unique<Pipeline>(mesh_, gpipe_schedule(shape.pp, 1), Shape{1, 1, config.d_model}, DType::f32);
}

std::span<const float> Generator::next_logits(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> ids(tokens.begin(), tokens.end());
  work_->begin(Tensor(ids.data(), DType::i32, {1, count}));
  if (count == 1) {
    single_token_->run_forward(*work_, 1);
  } else {
    Pipeline prefill(mesh_, gpipe_schedule(mesh_.shape().pp, 1), {1, count, network_.config().d_model},
                     DType::f32);
    prefill.run_forward(*work_, 1);
  }
  const Tensor all(logits_.data(), DType::f32, {1, static_cast<int64_t>(logits_.size())});
  if (mesh_.is_last_stage()) copy(work_->logits(), all);
  mesh_.pp().broadcast(all, mesh_.shape().pp - 1);
  return logits_;
}

void Generator::generate(std::span<const int32_t> prompt, int64_t count, const SamplingOptions& options,
                         const std::function<bool(int32_t)>& on_token) {
  std::vector<int32_t> pending(prompt.begin(), prompt.end());
  for (int64_t i = 0; i < count; ++i) {
    int32_t token = sample_token(next_logits(pending), options, static_cast<uint64_t>(i));
    mesh_.world().broadcast(Tensor(&token, DType::i32, {1}),
                            0);  // hosts of unlike kinds may round differently
    if (!on_token(token)) return;
    pending.assign(1, token);
  }
}

}  // namespace transxssm
