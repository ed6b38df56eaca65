#include "model/head.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/rmsnorm.h"
#include "model/embedding.h"

namespace transxssm {
namespace {

constexpr int64_t kChunkLogits = int64_t{1} << 22;  // logits alive at once: 16 MiB
constexpr int64_t kMinChunkTokens = 64;

}  // namespace

Head::Head(const ModelConfig& config, const Shard& shard, ParameterStore& store, const Boundary& boundary,
           Communicator& tp, int tied_weight)
    : store_(&store),
      boundary_(boundary),
      tp_(&tp),
      d_(config.d_model),
      vocab_size_(config.vocab_size),
      first_id_(shard.vocabulary.begin),
      local_vocab_(shard.vocabulary.count),
      widest_vocab_(shard.vocabulary.padded),
      eps_(config.norm_eps) {
  norm_ = store.declare({.name = "model.final_layernorm.weight",
                         .global_shape = {d_},
                         .box = whole_box({d_}),
                         .init = Init::ones,
                         .owner = shard.tp_rank == 0});
  if (tied_weight >= 0) {
    weight_ = tied_weight;
    return;
  }
  ParameterSpec spec = word_embedding_spec(config, shard);
  if (config.tie_embeddings) {
    spec.owner = false;  // the first stage's
    spec.tied_pair = true;
  } else {
    spec.name = "lm_head.weight";
  }
  weight_ = store.declare(std::move(spec));
}

Head::Saved Head::carve(Carver& saved, int64_t num_tokens) const {
  const Tensor normed = saved.take(DType::f32, {num_tokens, d_});
  return {normed, saved.take(DType::f32, {num_tokens})};
}

int64_t Head::saved_bytes(int64_t num_tokens) const {
  Carver count;
  carve(count, num_tokens);
  return count.used();
}

void Head::normalise(Stream& stream, const Tensor& x, const Tensor& y, const Tensor& rstd) const {
  run(stream, RmsNormForward{.x = x, .weight = (*store_)[norm_].weight, .y = y, .rstd = rstd, .eps = eps_});
}

double Head::loss(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved) const {
  return forward(stream, targets, x, saved, false);
}

double Head::loss_and_gradients(Stream& stream, const LossTargets& targets, const Tensor& x,
                                Carver saved) const {
  return forward(stream, targets, x, saved, true);
}

double Head::forward(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved,
                     bool gradients) const {
  const int64_t num_tokens = x.size(0);
  const Saved s = carve(saved, num_tokens);
  normalise(stream, x, s.normed, s.rstd);
  boundary_.enter_forward(s.normed);

  const int64_t chunk = std::min(num_tokens, std::max(kMinChunkTokens, kChunkLogits / widest_vocab_));
  Scratch scratch(stream, (chunk * local_vocab_ + 3 * chunk) * dtype_bytes(DType::f32) + 2 * kAlignment);
  double loss = 0;
  for (int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const int64_t n = std::min(chunk, num_tokens - begin);
    Carver carver = scratch.carver();
    const Tensor logits = carver.take(DType::f32, {n, local_vocab_});
    const Tensor statistics = carver.take(DType::f32, {3, n});
    const Tensor max = statistics.select(0, 0), sum = statistics.select(0, 1), hit = statistics.select(0, 2);
    const Tensor target = targets.target.slice(0, begin, n), valid = targets.valid.slice(0, begin, n);
    const Tensor normed = s.normed.slice(0, begin, n);
    output().forward(stream, normed, logits);
    run(stream, CrossEntropyStatistics{logits, target, max, sum, hit, first_id_});
    combine(stream, statistics);
    for (int64_t i = 0; i < n; ++i)
      if (valid.at<uint8_t>({i}))
        loss += std::log(static_cast<double>(sum.at<float>({i}))) + max.at<float>({i}) - hit.at<float>({i});
    if (!gradients) continue;
    run(stream, CrossEntropyBackward{logits, target, valid, max, sum, targets.loss_scale, first_id_});
    output().backward_weight(stream, logits, normed);
    output().backward_input(stream, logits, normed);  // normed is not needed any more
  }
  if (gradients) boundary_.enter_backward(s.normed);
  return loss;
}

void Head::combine(Stream& stream, const Tensor& statistics) const {
  if (tp_->size() == 1) return;
  const int64_t n = statistics.size(1);
  Scratch scratch(stream, tp_->size() * statistics.num_bytes());
  const Tensor all = scratch.carver().take(DType::f32, {tp_->size(), 3, n});
  tp_->all_gather(statistics, all);
  for (int64_t i = 0; i < n; ++i) {
    float max = all.at<float>({0, 0, i});
    for (int r = 1; r < tp_->size(); ++r) max = std::max(max, all.at<float>({r, 0, i}));
    float sum = 0, hit = 0;
    for (int r = 0; r < tp_->size(); ++r) {
      sum += all.at<float>({r, 1, i}) * std::exp(all.at<float>({r, 0, i}) - max);
      hit += all.at<float>({r, 2, i});  // zero but on the rank that holds the target
    }
    statistics.at<float>({0, i}) = max;
    statistics.at<float>({1, i}) = sum;
    statistics.at<float>({2, i}) = hit;
  }
}

void Head::backward_input(Stream& stream, const Tensor& x, const Tensor& dx, Carver saved) const {
  const Saved s = carve(saved, x.size(0));
  run(stream, RmsNormBackward{.dy = s.normed,
                              .sum = x,
                              .rstd = s.rstd,
                              .weight = (*store_)[norm_].weight,
                              .dx = dx,
                              .d_weight = (*store_)[norm_].gradient});
}

void Head::logits(Stream& stream, const Tensor& x, const Tensor& logits) const {
  const int64_t n = x.size(0);
  const int64_t columns = widest_vocab_;
  Scratch scratch(stream,
                  (n * d_ + n + (1 + tp_->size()) * n * columns) * dtype_bytes(DType::f32) + 4 * kAlignment);
  Carver carver = scratch.carver();
  const Tensor normed = carver.take(DType::f32, {n, d_});
  const Tensor rstd = carver.take(DType::f32, {n});
  const Tensor local = carver.take(DType::f32, {n, columns});
  const Tensor all = carver.take(DType::f32, {tp_->size(), n, columns});
  normalise(stream, x, normed, rstd);
  output().forward(stream, normed, local.slice(1, 0, local_vocab_));
  tp_->all_gather(local, all);
  for (int64_t begin = 0, r = 0; begin < vocab_size_; begin += columns, ++r) {
    const int64_t count = std::min(columns, vocab_size_ - begin);
    copy(all.select(0, r).slice(1, 0, count), logits.slice(1, begin, count));
  }
}

}  // namespace transxssm
