// What the forward and the backward of attention share: blocks of queries and keys, and which of them see
// each other. Scores are kept transposed, [keys, queries]: keys and values are then read as they lie, and
// maxima and sums over keys need no reduction inside a vector. Compiled once an instruction set: hence the
// guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_ATTENTION_COMMON_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_ATTENTION_COMMON_INL_H_
#undef TRANSXSSM_KERNELS_CPU_ATTENTION_COMMON_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_ATTENTION_COMMON_INL_H_
#endif

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "kernels/cpu/address.h"
#include "kernels/cpu/block_gemm_operands-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 64;

struct AttentionSizes {
  template <class Args>
  explicit AttentionSizes(const Args& args)
      : rows(args.q.size(0)),
        queries(args.q.size(1)),
        heads(args.q.size(2)),
        head_dim(args.q.size(3)),
        keys(args.k.size(1)),
        key_heads(args.k.size(2)),
        offset(args.query_offset) {}
  int64_t heads_per_key_head() const { return heads / key_heads; }
  int64_t query_blocks() const { return (queries + kQueryBlock - 1) / kQueryBlock; }
  int64_t key_blocks() const {
    return (queries + offset + kKeyBlock - 1) / kKeyBlock;
  }  // that any query sees

  int64_t rows, queries, heads, head_dim, keys, key_heads, offset;
};

// Queries [begin, begin + count) of one row.
struct QueryBlock {
  QueryBlock(const AttentionSizes& z, int64_t index)
      : begin(index * kQueryBlock), count(std::min(kQueryBlock, z.queries - begin)) {}
  int64_t begin, count;
};

// Keys [begin, begin + count) of one row, as far as the block's queries see them.
struct KeyBlock {
  KeyBlock(const AttentionSizes& z, const QueryBlock& queries, int64_t index)
      : begin(index * kKeyBlock),
        count(std::min(kKeyBlock, queries.begin + queries.count + z.offset - begin)) {}
  int64_t begin, count;
};

// The first key that any query of the block sees.
inline int64_t first_visible_key(const Tensor& first_key, int64_t row, const QueryBlock& queries) {
  return first_key ? *address<int32_t>(first_key, row, queries.begin) : 0;
}

// Calls fn(key, low, high) for each key of the block: the block's queries [low, high) see it.
template <class Fn>
HWY_INLINE void for_visible(const AttentionSizes& z, const Tensor& first_key, int64_t row,
                            const QueryBlock& queries, const KeyBlock& keys, Fn&& fn) {
  int64_t high = first_key ? 0 : queries.count;
  for (int64_t j = 0; j < keys.count; ++j) {
    const int64_t key = keys.begin + j;
    while (high < queries.count && *address<int32_t>(first_key, row, queries.begin + high) <= key) ++high;
    fn(j, std::clamp<int64_t>(key - z.offset - queries.begin, 0, queries.count), high);
  }
}

// `columns` of a block of rows [count,P], kQueryBlock columns wide. Where operands are bf16, which a factor
// would round once more, the scale is left to scaled().
template <class E>
void block_columns(const Operand<E>& block, int64_t count, int64_t head_dim, double scale, E* columns) {
  if constexpr (kPair<E> == 2) {
    pack_columns(count, head_dim, block.data, block.ld, columns, kQueryBlock);
  } else {
    transpose(count, head_dim, block.data, block.ld, columns, kQueryBlock, static_cast<E>(scale));
  }
}
template <class E, class D, class V = hn::Vec<D>>
HWY_INLINE V scaled(D d, V score, double scale) {
  if constexpr (kPair<E> == 2) return hn::Mul(score, hn::Set(d, static_cast<hn::TFromD<D>>(scale)));
  return score;
}

// scores[keys, queries] = k q^T, with -infinity where a query does not see a key. q_columns comes from
// block_columns; `buffer` takes keys as operands, where they are not that already.
template <class P, class T = typename P::Real, class E = typename P::Operand>
void visible_scores(const AttentionSizes& z, const Tensor& k, const Tensor& first_key, int64_t row,
                    int64_t key_head, const QueryBlock& queries, const KeyBlock& keys, const E* q_columns,
                    T* scores, E* buffer) {
  const auto* k_block = address<typename P::Storage>(k, row, keys.begin, key_head);
  const Operand<E> k_rows = as_rows<E>(keys.count, z.head_dim, k_block, k.stride(1), buffer);
  block_gemm(keys.count, queries.count, z.head_dim, k_rows.rows(), q_columns, kQueryBlock, scores,
             kQueryBlock, false);
  for_visible(z, first_key, row, queries, keys, [&](int64_t j, int64_t low, int64_t high) {
    constexpr T kUnseen = -std::numeric_limits<T>::infinity();
    T* line = scores + j * kQueryBlock;
    std::fill(line, line + low, kUnseen);
    if (high < queries.count) std::fill(line + high, line + queries.count, kUnseen);
  });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
