#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_checks.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread.
template <class T>
struct AttentionForwardBuffers {
  AttentionForwardBuffers(Carver& carver, const AttentionSizes& z) {
    const auto take = [&](int64_t m, int64_t n) {
      return carver.take(DTypeOf<T>::value, {m, n}).template data<T>();
    };
    q_transposed = take(z.head_dim, kQueryBlock);
    scores = z.queries == 1 ? take(z.heads_per_key_head(), z.keys) : take(kKeyBlock, kQueryBlock);
    out = take(kQueryBlock, z.head_dim);
    max = take(1, kQueryBlock);
    sum = take(1, kQueryBlock);
    correction = take(1, kQueryBlock);
  }
  T* q_transposed;
  T* scores;  // [keys, queries], then probabilities; with one query [heads, keys]
  T* out;     // not yet divided by sum
  T* max;     // of each query's scores so far
  T* sum;     // of exp(score - max)
  T* correction;
};

// Finite, below any score: what has seen nothing yet keeps exp(-infinity - max) = 0.
template <class T>
constexpr T kNoMax = std::numeric_limits<T>::lowest() / 4;

// Scores of one block of keys become probabilities before division; updates max and sum.
template <class T>
void online_softmax(const AttentionForwardBuffers<T>& buffer, int64_t queries, int64_t keys) {
  for_lanes<T>(queries, [&](auto d, int64_t i) HWY_ATTR {
    const auto old_max = hn::LoadU(d, buffer.max + i);
    auto max = old_max;
    for (int64_t j = 0; j < keys; ++j) max = hn::Max(max, hn::LoadU(d, buffer.scores + j * kQueryBlock + i));
    const auto correction = hn::Exp(d, hn::Sub(old_max, max));
    auto sum = hn::Zero(d);
    for (int64_t j = 0; j < keys; ++j) {
      T* score = buffer.scores + j * kQueryBlock + i;
      const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, score), max));
      sum = hn::Add(sum, weight);
      hn::StoreU(weight, d, score);
    }
    hn::StoreU(max, d, buffer.max + i);
    hn::StoreU(correction, d, buffer.correction + i);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, buffer.sum + i), correction, sum), d, buffer.sum + i);
  });
}

// One head, one block of queries, over all the keys these see.
template <class T>
void forward_block(const AttentionForward& args, const AttentionSizes& z,
                   const AttentionForwardBuffers<T>& buffer, int64_t row, int64_t head, int64_t block) {
  const QueryBlock queries(z, block);
  const int64_t key_head = head / z.heads_per_key_head(), p = z.head_dim;
  transpose(queries.count, p, address<T>(args.q, row, queries.begin, head), args.q.stride(1),
            buffer.q_transposed, kQueryBlock, static_cast<T>(args.scale));
  std::fill_n(buffer.max, queries.count, kNoMax<T>);
  std::fill_n(buffer.sum, queries.count, T(0));
  const int64_t first = first_visible_key(args.first_key, row, queries) / kKeyBlock;
  const int64_t last = (queries.begin + queries.count - 1 + z.offset) / kKeyBlock;
  for (int64_t b = first; b <= last; ++b) {
    const KeyBlock keys(z, queries, b);
    visible_scores(z, args.k, args.first_key, row, key_head, queries, keys, buffer.q_transposed,
                   buffer.scores);
    online_softmax(buffer, queries.count, keys.count);
    for (int64_t i = 0; i < queries.count && b > first; ++i) {
      T* line = buffer.out + i * p;
      for (int64_t j = 0; j < p; ++j) line[j] *= buffer.correction[i];
    }
    block_gemm(queries.count, p, keys.count, StridedMatrix<T>{buffer.scores, 1, kQueryBlock},
               address<T>(args.v, row, keys.begin, key_head), args.v.stride(1), buffer.out, p, b > first);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    T* out = address<T>(args.out, row, queries.begin + i, head);
    const T factor = 1 / buffer.sum[i];
    for (int64_t j = 0; j < p; ++j) out[j] = factor * buffer.out[i * p + j];
    if (args.log_sum_exp) {
      *address<T>(args.log_sum_exp, row, head, queries.begin + i) = buffer.max[i] + std::log(buffer.sum[i]);
    }
  }
}

// One query: decoding. All heads of one key head, so that keys and values are read once.
template <class T>
void forward_one(const AttentionForward& args, const AttentionSizes& z,
                 const AttentionForwardBuffers<T>& buffer, int64_t row, int64_t key_head) {
  const int64_t p = z.head_dim, heads = z.heads_per_key_head(), head0 = key_head * heads, zero = 0;
  const int64_t first = args.first_key ? *address<int32_t>(args.first_key, row, zero) : 0;
  const int64_t count = z.offset + 1 - first;
  for (int64_t j = 0; j < count; ++j) {
    const T* k = address<T>(args.k, row, first + j, key_head);
    for (int64_t h = 0; h < heads; ++h) {
      const T* q = address<T>(args.q, row, zero, head0 + h);
      const T dot = sum_lanes<T>(
          p, [&](auto d, int64_t i) HWY_ATTR { return hn::Mul(hn::LoadU(d, q + i), hn::LoadU(d, k + i)); });
      buffer.scores[h * count + j] = dot * static_cast<T>(args.scale);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    T* scores = buffer.scores + h * count;
    const T max = max_lanes(scores, count, kNoMax<T>);
    const T sum = sum_lanes<T>(count, [&](auto d, int64_t j) HWY_ATTR {
      const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + j), hn::Set(d, max)));
      hn::StoreU(weight, d, scores + j);
      return weight;
    });
    for (int64_t j = 0; j < count; ++j) scores[j] /= sum;
    if (args.log_sum_exp) *address<T>(args.log_sum_exp, row, head0 + h, zero) = max + std::log(sum);
  }
  block_gemm(heads, p, count, StridedMatrix<T>{buffer.scores, count, 1},
             address<T>(args.v, row, first, key_head), args.v.stride(1),
             address<T>(args.out, row, zero, head0), args.out.stride(2), false);
}

template <class T>
void forward(Stream& stream, const AttentionForward& args) {
  const AttentionSizes z(args);
  Carver counter;
  AttentionForwardBuffers<T>(counter, z);
  const int64_t thread_bytes = counter.used();
  Scratch scratch(stream, stream.num_threads() * thread_bytes);
  const auto buffers = [&](int thread) {
    Carver own(reinterpret_cast<std::byte*>(scratch.data<uint8_t>()) + thread * thread_bytes, thread_bytes);
    return AttentionForwardBuffers<T>(own, z);
  };
  if (z.queries == 1) {
    parallel_items(stream, z.rows * z.key_heads, [&](int64_t i, int thread) {
      forward_one(args, z, buffers(thread), i / z.key_heads, i % z.key_heads);
    });
    return;
  }
  const int64_t blocks = z.query_blocks();
  parallel_items(stream, z.rows * z.heads * blocks, [&](int64_t i, int thread) {
    // The last queries of a row see the most keys: they go first.
    const int64_t head = i / blocks;
    forward_block(args, z, buffers(thread), head / z.heads, head % z.heads, blocks - 1 - i % blocks);
  });
}

void forward_f32(Stream& stream, const AttentionForward& args) {
  forward<float>(stream, args);
}
void forward_f64(Stream& stream, const AttentionForward& args) {
  forward<double>(stream, args);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);

void run(Stream& stream, const AttentionForward& args) {
  check_attention(args);
  if (args.q.dtype() == DType::f32) {
    HWY_DYNAMIC_DISPATCH(forward_f32)(stream, args);
  } else {
    HWY_DYNAMIC_DISPATCH(forward_f64)(stream, args);
  }
}

}  // namespace transxssm::cpu
#endif
