#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_checks.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/thread_buffers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread. E: operands of products, in the layouts of kernels/cpu/block_gemm_bf16.h.
template <class P>
struct AttentionForwardBuffers {
  using T = typename P::Real;
  using E = typename P::Operand;
  AttentionForwardBuffers(Carver& carver, const AttentionSizes& z) {
    const auto take = [&]<class Element>(Element*& to, int64_t size) {
      to = carver.take(DTypeOf<Element>::value, {size}).template data<Element>();
    };
    take(q, kQueryBlock * z.head_dim);
    take(q_columns, z.head_dim * kQueryBlock);
    take(k, kKeyBlock * z.head_dim);
    take(v, kKeyBlock * z.head_dim);
    take(scores, z.queries == 1 ? z.heads_per_key_head() * z.keys : kKeyBlock * kQueryBlock);
    take(weights, kKeyBlock * kQueryBlock);
    take(values, z.queries == 1 ? kKeyBlock * z.head_dim : 0);
    take(out, std::max(kQueryBlock, z.heads_per_key_head()) * z.head_dim);
    take(max, kQueryBlock);
    take(sum, kQueryBlock);
    take(correction, kQueryBlock);
  }
  E* q;
  E* q_columns;
  E* k;
  E* v;
  T* scores;   // [keys, queries], then probabilities; with one query [heads, keys]
  E* weights;  // probabilities in pairs
  T* values;   // widened v of one query
  T* out;      // not yet divided by sum
  T* max;      // of each query's scores so far
  T* sum;      // of exp(score - max)
  T* correction;
};

// Finite, below any score: what has seen nothing yet keeps exp(-infinity - max) = 0.
template <class T>
constexpr T kNoMax = std::numeric_limits<T>::lowest() / 4;

// Scores of one block of keys become probabilities before division; updates max and sum.
template <class P, class T = typename P::Real>
void online_softmax(const AttentionForwardBuffers<P>& buffer, double scale, int64_t queries, int64_t keys) {
  using E = typename P::Operand;
  for_lanes<T>(queries, [&](auto d, int64_t i) HWY_ATTR {
    const auto old_max = hn::LoadU(d, buffer.max + i);
    auto max = old_max;
    for (int64_t j = 0; j < keys; ++j) {
      max = hn::Max(max, scaled<E>(d, hn::LoadU(d, buffer.scores + j * kQueryBlock + i), scale));
    }
    const auto correction = weight_exp<E>(d, hn::Sub(old_max, max));
    auto sum = hn::Zero(d);
    for (int64_t j = 0; j < keys; ++j) {
      T* score = buffer.scores + j * kQueryBlock + i;
      const auto weight = weight_exp<E>(d, hn::Sub(scaled<E>(d, hn::LoadU(d, score), scale), max));
      sum = hn::Add(sum, weight);
      hn::StoreU(weight, d, score);
    }
    hn::StoreU(max, d, buffer.max + i);
    hn::StoreU(correction, d, buffer.correction + i);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, buffer.sum + i), correction, sum), d, buffer.sum + i);
  });
}

// One head, one block of queries, over all the keys these see.
template <class P>
void forward_block(const AttentionForward& args, const AttentionSizes& z,
                   const AttentionForwardBuffers<P>& buffer, int64_t row, int64_t head, int64_t block) {
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  const QueryBlock queries(z, block);
  const int64_t key_head = head / z.heads_per_key_head(), p = z.head_dim;
  const S* q = address<S>(args.q, row, queries.begin, head);
  block_columns(as_rows<E>(queries.count, p, q, args.q.stride(1), buffer.q), queries.count, p, args.scale,
                buffer.q_columns);
  std::fill_n(buffer.max, queries.count, kNoMax<T>);
  std::fill_n(buffer.sum, queries.count, T(0));
  const int64_t first = first_visible_key(args.first_key, row, queries) / kKeyBlock;
  const int64_t last = (queries.begin + queries.count - 1 + z.offset) / kKeyBlock;
  for (int64_t b = first; b <= last; ++b) {
    const KeyBlock keys(z, queries, b);
    visible_scores<P>(z, args.k, args.first_key, row, key_head, queries, keys, buffer.q_columns,
                      buffer.scores, buffer.k);
    online_softmax(buffer, args.scale, queries.count, keys.count);
    for (int64_t i = 0; i < queries.count && b > first; ++i) {
      T* line = buffer.out + i * p;
      for (int64_t j = 0; j < p; ++j) line[j] *= buffer.correction[i];
    }
    const Operand<E> weights =
        as_pairs<E>(keys.count, queries.count, buffer.scores, kQueryBlock, buffer.weights);
    const Operand<E> v =
        as_pairs<E>(keys.count, p, address<S>(args.v, row, keys.begin, key_head), args.v.stride(1), buffer.v);
    block_gemm(queries.count, p, keys.count, weights.transposed(), v.data, v.ld, buffer.out, p, b > first);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    S* out = address<S>(args.out, row, queries.begin + i, head);
    const T factor = 1 / buffer.sum[i];
    for_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
      store(hn::Mul(hn::Set(d, factor), hn::LoadU(d, buffer.out + i * p + j)), d, out + j);
    });
    if (args.log_sum_exp) {
      *address<T>(args.log_sum_exp, row, head, queries.begin + i) = buffer.max[i] + std::log(buffer.sum[i]);
    }
  }
}

// One query: decoding. All heads of one key head, so that keys and values are read once.
template <class P>
void forward_one(const AttentionForward& args, const AttentionSizes& z,
                 const AttentionForwardBuffers<P>& buffer, int64_t row, int64_t key_head) {
  using T = typename P::Real;
  using S = typename P::Storage;
  const int64_t p = z.head_dim, heads = z.heads_per_key_head(), head0 = key_head * heads, zero = 0;
  const int64_t first = args.first_key ? *address<int32_t>(args.first_key, row, zero) : 0;
  const int64_t count = z.offset + 1 - first;
  for (int64_t j = 0; j < count; ++j) {
    const S* k = address<S>(args.k, row, first + j, key_head);
    for (int64_t h = 0; h < heads; ++h) {
      const S* q = address<S>(args.q, row, zero, head0 + h);
      const T dot = sum_lanes<T>(
          p, [&](auto d, int64_t i) HWY_ATTR { return hn::Mul(load(d, q + i), load(d, k + i)); });
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
  const S* v = address<S>(args.v, row, first, key_head);
  S* out = address<S>(args.out, row, zero, head0);
  if constexpr (std::is_same_v<S, T>) {
    block_gemm(heads, p, count, StridedMatrix<T>{buffer.scores, count, 1}, v, args.v.stride(1), out,
               args.out.stride(2), false);
  } else {
    for (int64_t j = 0; j < count; j += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, count - j);
      pack(v + j * args.v.stride(1), args.v.stride(1), keys, p, buffer.values);
      block_gemm(heads, p, keys, StridedMatrix<T>{buffer.scores + j, count, 1}, buffer.values, p, buffer.out,
                 p, j > 0);
    }
    pack(buffer.out, p, heads, p, out, args.out.stride(2));
  }
}

template <class P>
void forward(Stream& stream, const AttentionForward& args) {
  const AttentionSizes z(args);
  const ThreadBuffers<AttentionForwardBuffers<P>, AttentionSizes> buffers(stream, z);
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

void forward_any(Stream& stream, const AttentionForward& args) {
  with_precision(args.q.dtype(), [&](auto precision) { forward<decltype(precision)>(stream, args); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_any);

void run(Stream& stream, const AttentionForward& args) {
  check_attention(args);
  HWY_DYNAMIC_DISPATCH(forward_any)(stream, args);
}

}  // namespace transxssm::cpu
#endif
