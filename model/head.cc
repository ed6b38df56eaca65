#include "model/head.h"

#include <algorithm>
#include <utility>

#include "kernels/copy.h"
#include "kernels/cross_entropy.h"
#include "kernels/rmsnorm.h"
#include "model/embedding.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

// Each chunk reads the weight twice and reads and writes its gradient, 12 bytes an element, for 6 operations
// a token and element. With a thousand tokens that is 500 operations a byte; CPUs do some 16 in the time of
// one.
constexpr int64_t kChunkTokens = 1024;
constexpr int64_t kChunkLogits = int64_t{1} << 26;  // the most alive at once: 128 MiB in bf16
constexpr int64_t kMinChunkTokens = 64;

// Tokens of a chunk, all but the last alike and that one not much shorter.
int64_t chunk_tokens(int64_t num_tokens, int64_t vocabulary) {
  const int64_t most = std::clamp(kChunkLogits / vocabulary, kMinChunkTokens, kChunkTokens);
  const int64_t chunks = std::max<int64_t>(1, (num_tokens + most - 1) / most);
  return (num_tokens + chunks - 1) / chunks;
}

}  // namespace

Head::Head(const ModelConfig& config, const Shard& shard, const Precision& precision, ParameterStore& store,
           const Boundary& boundary, Communicator& tp, int tied_weight)
    : store_(&store),
      boundary_(boundary),
      tp_(&tp),
      dtype_(precision.activation),
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
    output_ = store.declare_linear({.first = tied_weight});
    return;
  }
  ParameterSpec spec = word_embedding_spec(config, shard);
  if (config.tie_embeddings) {
    spec.owner = false;  // the first stage's
    spec.tied_pair = true;
  } else {
    spec.name = "lm_head.weight";
  }
  output_ = store.declare_linear({.first = store.declare(std::move(spec))});
}

Head::Saved Head::carve(Carver& saved, int64_t num_tokens) const {
  const Tensor normed = saved.take(dtype_, {num_tokens, d_});
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

void Head::loss(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved) const {
  forward(stream, targets, x, saved, false);
}

void Head::loss_and_gradients(Stream& stream, const LossTargets& targets, const Tensor& x,
                              Carver saved) const {
  forward(stream, targets, x, saved, true);
}

void Head::forward(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved,
                   bool gradients) const {
  const Span span(Activity::compute, "head", &stream);
  const int64_t num_tokens = x.size(0);
  const Saved s = carve(saved, num_tokens);
  normalise(stream, x, s.normed, s.rstd);
  boundary_.enter_forward(s.normed);

  const int64_t part_tokens = num_tokens / targets.loss.size(0);
  const int64_t chunk = chunk_tokens(num_tokens, widest_vocab_);
  const auto carve_chunk = [&](Carver& carver, int64_t n) {
    const Tensor logits = take_logits(carver, n);
    return std::pair{logits, carver.take(DType::f32, {3, n})};
  };
  Carver count;
  carve_chunk(count, chunk);
  Scratch scratch(stream, count.used());
  for (int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const int64_t n = std::min(chunk, num_tokens - begin);
    Carver carver = scratch.carver();
    const auto [logits, statistics] = carve_chunk(carver, n);
    const Tensor max = statistics.select(0, 0), sum = statistics.select(0, 1), hit = statistics.select(0, 2);
    const Tensor target = targets.target.slice(0, begin, n), valid = targets.valid.slice(0, begin, n);
    const Tensor normed = s.normed.slice(0, begin, n);
    output().forward(stream, normed, logits);
    run(stream, CrossEntropyStatistics{logits, target, max, sum, hit, first_id_});
    combine(stream, statistics);
    for (int64_t at = 0; at < n;) {  // the parts of the tokens that lie in this chunk
      const int64_t part = (begin + at) / part_tokens;
      const int64_t taken = std::min(n - at, (part + 1) * part_tokens - begin - at);
      run(stream,
          CrossEntropyLoss{valid.slice(0, at, taken), max.slice(0, at, taken), sum.slice(0, at, taken),
                           hit.slice(0, at, taken), targets.loss.slice(0, part, 1)});
      at += taken;
    }
    if (!gradients) continue;
    run(stream, CrossEntropyBackward{logits, target, valid, max, sum, targets.loss_scale, first_id_});
    output().backward_weight(stream, logits, normed);
    output().backward_input(stream, logits, normed);  // normed is not needed any more
  }
  if (gradients) boundary_.enter_backward(s.normed);
}

Tensor Head::take_logits(Carver& carver, int64_t n) const {
  constexpr int64_t kColumns = 8;
  const int64_t padded = (local_vocab_ + kColumns - 1) / kColumns * kColumns;
  const Tensor whole = carver.take(dtype_, {n, padded});
  return whole.empty() ? whole : whole.slice(1, 0, local_vocab_);
}

void Head::combine(Stream& stream, const Tensor& statistics) const {
  if (tp_->size() == 1) return;
  Scratch scratch(stream, tp_->size() * statistics.num_bytes());
  const Tensor all = scratch.carver().take(DType::f32, {tp_->size(), 3, statistics.size(1)});
  tp_->all_gather(statistics, all);
  run(stream, CrossEntropyCombine{all, statistics});
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
  const int64_t n = x.size(0), columns = widest_vocab_;
  struct Buffers {
    Tensor normed, rstd, local, all;
  };
  const auto carve_buffers = [&](Carver& carver) {
    Buffers b;
    b.normed = carver.take(dtype_, {n, d_});
    b.rstd = carver.take(DType::f32, {n});
    b.local = carver.take(dtype_, {n, columns});
    b.all = carver.take(dtype_, {tp_->size(), n, columns});
    return b;
  };
  Carver count;
  carve_buffers(count);
  Scratch scratch(stream, count.used());
  Carver carver = scratch.carver();
  const Buffers b = carve_buffers(carver);
  normalise(stream, x, b.normed, b.rstd);
  output().forward(stream, b.normed, b.local.slice(1, 0, local_vocab_));
  tp_->all_gather(b.local, b.all);
  for (int64_t begin = 0, r = 0; begin < vocab_size_; begin += columns, ++r) {
    const int64_t width = std::min(columns, vocab_size_ - begin);
    run(stream, Copy{b.all.select(0, r).slice(1, 0, width), logits.slice(1, begin, width)});
  }
}

}  // namespace transxssm
