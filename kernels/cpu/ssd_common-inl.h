// What the forward and the backward of the state-space scan share: sizes, decays inside a chunk, the
// rotation, products with lower-triangular matrices. Compiled once an instruction set: hence the guard that
// toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SSD_COMMON_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SSD_COMMON_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SSD_COMMON_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SSD_COMMON_INL_H_
#endif

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/address.h"
#include "kernels/cpu/block_gemm_operands-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/ssd_scan.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Score matrices [q,q] of a chunk are lower triangles, handled in strips of rows that stay in a near cache;
// inside a strip, blocks of kTriangleBlock rows stop at the diagonal.
constexpr int64_t kStripRows = 64;
constexpr int64_t kTriangleBlock = 16;
constexpr double kSoftplusThreshold = 20;  // softplus(v) = v beyond it

struct ScanSizes {
  ScanSizes(const Stream& stream, const SsdInput& in)
      : rows(in.x.size(0)),
        tokens(in.x.size(1)),
        heads(in.x.size(2)),
        head_dim(in.x.size(3)),
        state_dim(in.b.size(3)),
        groups(in.b.size(2)),
        chunk(in.chunk),
        chunks(ssd_num_chunks(tokens, chunk)),
        longest(std::min(chunk, tokens)),
        padded((longest + kTriangleBlock - 1) / kTriangleBlock * kTriangleBlock),
        by_group(fills_threads(stream.num_threads(), rows * groups)),
        slots(by_group ? std::min<int64_t>(2, chunks) : chunks) {}
  int64_t length(int64_t c) const { return std::min(chunk, tokens - c * chunk); }  // tokens of chunk c
  int64_t heads_per_group() const { return heads / groups; }
  int64_t rows, tokens, heads, head_dim, state_dim, groups, chunk, chunks;
  int64_t longest;  // tokens of the longest chunk
  int64_t padded;   // the same, rounded up: leading dimension of score matrices
  // Where there are tasks enough for all threads, one thread takes a group through all chunks and finds a
  // chunk's tokens in its cache again; else the states are formed first, then all chunks at once. Same bits
  // either way.
  bool by_group;
  int64_t slots;  // chunks whose states and decays are kept at a time: chunk c in slot c % slots

 private:
  static bool fills_threads(int64_t threads, int64_t tasks) {
    return (tasks + threads - 1) / threads * threads * 7 <= tasks * 8;
  }
};

// Runs state(buffers, row, chunk, head) and then rest(buffers, row, chunk, group) for all of them, with the
// thread's buffers; a head's chunks come in order, upwards or downwards.
template <class Buffers, class State, class Rest>
void for_chunks(const Stream& stream, const ScanSizes& z, bool upwards, const Buffers& buffers, State&& state,
                Rest&& rest) {
  const auto chunk = [&](int64_t step) { return upwards ? step : z.chunks - 1 - step; };
  if (z.by_group) {
    parallel_items(stream, z.rows * z.groups, [&](int64_t i, int thread) {
      const int64_t row = i / z.groups, group = i % z.groups, heads = z.heads_per_group();
      const auto own = buffers(thread);
      for (int64_t step = 0; step < z.chunks; ++step) {
        for (int64_t h = 0; h < heads; ++h) state(own, row, chunk(step), group * heads + h);
        rest(own, row, chunk(step), group);
      }
    });
    return;
  }
  parallel_items(stream, z.rows * z.heads, [&](int64_t i, int thread) {
    const auto own = buffers(thread);
    for (int64_t step = 0; step < z.chunks; ++step) state(own, i / z.heads, chunk(step), i % z.heads);
  });
  parallel_items(stream, z.rows * z.chunks * z.groups, [&](int64_t i, int thread) {
    const int64_t c = i / z.groups;
    rest(buffers(thread), c / z.chunks, c % z.chunks, i % z.groups);
  });
}

// Asks for a token's row [.., index, :] before it is needed: rows of one head lie far apart, and the
// processor foresees no such steps. Any token may be named. With kWrite the row is to be written.
template <bool kWrite = false>
void prefetch_row(const Tensor& tensor, int64_t row, int64_t token, int64_t index) {
  constexpr int64_t kCacheLine = 64;
  const int64_t size = dtype_bytes(tensor.dtype());
  const auto* line = static_cast<const std::byte*>(tensor.raw()) +
                     (row * tensor.stride(0) + token * tensor.stride(1) + index * tensor.stride(2)) * size;
  for (int64_t i = 0; i < tensor.size(3) * size; i += kCacheLine) __builtin_prefetch(line + i, kWrite, 2);
}

// first[i]: the last document start at or before token i of the chunk, -1 where there is none. Tokens with
// one `first` see each other; those with -1 see the state that enters.
inline void find_segments(const Tensor& start, int64_t row, int64_t begin, int64_t length, int32_t* first) {
  int32_t last = -1;
  for (int64_t i = 0; i < length; ++i) {
    if (start && *address<uint8_t>(start, row, begin + i)) last = static_cast<int32_t>(i);
    first[i] = last;
  }
}

// Of one head in one chunk; g is the running sum of a dt. g comes as high + low, because the differences of g
// that the scores need must be right relative to themselves.
template <class T>
struct Decay {
  static constexpr int64_t kArrays = 5;
  // In `decays`, [rows, heads, slots, kArrays, padded].
  Decay(T* decays, const ScanSizes& z, int64_t row, int64_t head, int64_t c)
      : dt(decays + ((row * z.heads + head) * z.slots + c % z.slots) * kArrays * z.padded),
        high(dt + z.padded),
        low(high + z.padded),
        into(low + z.padded),
        out(into + z.padded) {}
  T* dt;
  T* high;
  T* low;
  T* into;  // exp(g_i): weight of the entering state at token i; 0 behind a document start
  T* out;   // exp(g_last - g_j): weight of token j in the leaving state; 0 before a document start
};

template <class T>
void compute_decay(const SsdInput& in, const ScanSizes& sizes, int64_t row, int64_t head, int64_t c,
                   const int32_t* first, const Decay<T>& decay) {
  const int64_t q = sizes.length(c);
  const T bias = *address<T>(in.dt_bias, head);
  const double a = -std::exp(static_cast<double>(*address<T>(in.a_log, head)));
  for (int64_t i = 0; i < q; ++i) decay.dt[i] = *address<T>(in.u, row, c * sizes.chunk + i, head) + bias;
  for_lanes<T>(q, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, decay.dt + i), threshold = hn::Set(d, T(kSoftplusThreshold));
    const auto soft = hn::Log1p(d, hn::Exp(d, hn::Min(v, threshold)));
    hn::StoreU(hn::IfThenElse(hn::Gt(v, threshold), v, soft), d, decay.dt + i);
  });
  double g = 0;
  for (int64_t i = 0; i < q; ++i) {
    g += a * static_cast<double>(decay.dt[i]);
    decay.high[i] = static_cast<T>(g);
    decay.low[i] = static_cast<T>(g - static_cast<double>(decay.high[i]));
  }
  for_lanes<T>(q, [&](auto d, int64_t i) HWY_ATTR {
    const auto high = hn::LoadU(d, decay.high + i), low = hn::LoadU(d, decay.low + i);
    const auto into = hn::Exp(d, high);
    hn::StoreU(hn::MulAdd(into, low, into), d, decay.into + i);
    const auto rest =
        hn::Add(hn::Sub(hn::Set(d, decay.high[q - 1]), high), hn::Sub(hn::Set(d, decay.low[q - 1]), low));
    hn::StoreU(hn::Exp(d, hn::Min(rest, hn::Zero(d))), d, decay.out + i);
  });
  for (int64_t i = 0; i < q && first[q - 1] >= 0; ++i) {
    if (first[i] >= 0) decay.into[i] = 0;
    if (i < first[q - 1]) decay.out[i] = 0;
  }
}

// out = scale R(position) in, the other way round with sign -1; out may be in. Without tables R is the
// identity.
template <class T, class From, class To>
HWY_INLINE void rotate(const SsdInput& in, int64_t position, T sign, T scale, int64_t size, const From* from,
                       To* to) {
  if (!in.cos) {
    for_lanes<T>(size, [&](auto d, int64_t j)
                           HWY_ATTR { store(hn::Mul(hn::Set(d, scale), load(d, from + j)), d, to + j); });
    return;
  }
  const T* cos = address<T>(in.cos, position);
  const T* sin = address<T>(in.sin, position);
  const int64_t half = size / 2;
  for_lanes<T>(half, [&](auto d, int64_t j) HWY_ATTR {
    const auto x = load(d, from + j), y = load(d, from + half + j);
    const auto c = hn::Mul(hn::Set(d, scale), hn::LoadU(d, cos + j));
    const auto s = hn::Mul(hn::Set(d, scale * sign), hn::LoadU(d, sin + j));
    store(hn::NegMulAdd(y, s, hn::Mul(x, c)), d, to + j);
    store(hn::MulAdd(y, c, hn::Mul(x, s)), d, to + half + j);
  });
}

// Moves a state [P,N] to the frame of a token `distance` later (sign -1) or earlier (+1), in place.
template <class T>
void rotate_state(const SsdInput& in, const ScanSizes& sizes, int64_t distance, T sign, T* state) {
  if (!in.cos) return;
  for (int64_t p = 0; p < sizes.head_dim; ++p) {
    T* line = state + p * sizes.state_dim;
    rotate(in, distance, sign, T(1), sizes.state_dim, line, line);
  }
}

template <class T>
T scale_of_c(const SsdInput& in, int64_t row, int64_t token) {
  return in.c_scale ? *address<T>(in.c_scale, row, token) : T(1);
}

// A state [P,N] of the chunks' tensor: itself, or widened from bf16 to `buffer`.
template <class T>
const T* chunk_state(const ScanSizes& z, const Tensor& states, int64_t row, int64_t slot, int64_t head,
                     T* buffer) {
  if (states.dtype() == DTypeOf<T>::value) return address<T>(states, row, slot, head);
  if constexpr (std::is_same_v<T, float>) {
    const int64_t size = z.head_dim * z.state_dim;
    pack(address<BFloat16>(states, row, slot, head), size, 1, size, buffer);
  }
  return buffer;
}

// Rows [begin, end) of out = left right, columns up to the diagonal's block. `left` and `out` start at row
// begin; `right` has rows `ld` apart.
template <class E, class T>
void lower_scores(int64_t begin, int64_t end, int64_t depth, const E* left, const E* right, int64_t ld,
                  T* out) {
  for (int64_t i = begin; i < end; i += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - i);
    block_gemm(m, i + m, depth, Operand<E>{left + (i - begin) * depth, depth}.rows(), right, ld,
               out + (i - begin) * ld, ld, false);
  }
}

// `rows` and `pairs` of a strip [begin, end) of a lower-triangular matrix with rows `ld` apart, up to the
// diagonal's block.
template <class E, class T>
const E* lower_rows(int64_t begin, int64_t end, const T* strip, int64_t ld, E* buffer) {
  if constexpr (std::is_same_v<E, T>) return strip;
  if constexpr (std::is_same_v<E, BFloat16>) {
    for (int64_t i = begin; i < end; i += kTriangleBlock) {
      const int64_t m = std::min(kTriangleBlock, end - i), at = (i - begin) * ld;
      pack_rows(m, i + kTriangleBlock, strip + at, ld, buffer + at, ld);
    }
  }
  return buffer;
}
template <class E, class T>
const E* lower_pairs(int64_t begin, int64_t end, const T* strip, int64_t ld, E* buffer) {
  if constexpr (std::is_same_v<E, T>) return strip;
  if constexpr (std::is_same_v<E, BFloat16>) {
    for (int64_t i = begin; i < end; i += kTriangleBlock) {
      const int64_t m = std::min(kTriangleBlock, end - i), at = (i - begin) * ld;
      pack_pairs(m, i + kTriangleBlock, strip + at, ld, buffer + at, ld);
    }
  }
  return buffer;
}

// Rows [begin, end) of c += lower b, with `rows` of lower. `lower` and `c` start at row begin.
template <class E, class T>
void add_lower_product(int64_t begin, int64_t end, int64_t columns, const E* lower, int64_t ld, const E* b,
                       T* c, int64_t ldc) {
  for (int64_t i = begin; i < end; i += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - i);
    block_gemm(m, columns, i + m, Operand<E>{lower + (i - begin) * ld, ld}.rows(), b, columns,
               c + (i - begin) * ldc, ldc, true);
  }
}

// c += lower^T b with rows [begin, end) of lower, in `pairs`, and b; `lower` starts at row begin, b and c at
// row 0.
template <class E, class T>
void add_lower_transposed_product(int64_t begin, int64_t end, int64_t columns, const E* lower, int64_t ld,
                                  const E* b, T* c) {
  if (begin > 0) {
    block_gemm(begin, columns, end - begin, Operand<E>{lower, ld}.transposed(), b + begin * columns, columns,
               c, columns, true);
  }
  for (int64_t j = begin; j < end; j += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - j);
    const Operand<E> block{lower + (j - begin) * ld + j * kPair<E>, ld};
    block_gemm(m, columns, end - j, block.transposed(), b + j * columns, columns, c + j * columns, columns,
               true);
  }
}

// Calls fn(d, j, L) for the vectors of row i of the decay matrix L, L_ij = exp(g_i - g_j) for the tokens j
// that token i sees and 0 elsewhere (masked whatever the exponent was), from column 0 to the block of the
// diagonal. With bf16 operands, which ask for less, columns before the diagonal's block are a product of a
// factor of the row and one of the column, both at most 1: exp(g_i - g_t) exp(g_t - g_j), t the block's first
// row. `factors` keeps them, [16 + padded], from row t on: rows come upwards.
template <class E, class T, class Fn>
HWY_INLINE void for_decay_row(int64_t i, const int32_t* first, const Decay<T>& decay, T* factors, Fn&& fn) {
  const hn::CappedTag<T, kTriangleBlock> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t begin = std::max<int64_t>(first[i], 0), block = i / kTriangleBlock * kTriangleBlock;
  // exp(sign (g_i - g_j)) for the vector of columns j
  const auto weights = [&](int64_t row, int64_t j, T sign) HWY_ATTR {
    const auto high = hn::Set(d, decay.high[row]), low = hn::Set(d, decay.low[row]);
    const auto difference =
        hn::Add(hn::Sub(high, hn::LoadU(d, decay.high + j)), hn::Sub(low, hn::LoadU(d, decay.low + j)));
    return weight_exp<E>(d, hn::Min(hn::Mul(hn::Set(d, sign), difference), hn::Zero(d)));
  };
  int64_t j = 0;
  if constexpr (kPair<E> == 2) {
    if (i == block) {
      hn::StoreU(weights(block, block, T(-1)), d, factors);
      for (; j < block; j += lanes) hn::StoreU(weights(block, j, T(1)), d, factors + kTriangleBlock + j);
    }
    const auto factor = hn::Set(d, factors[i - block]);
    for (j = 0; j < block; j += lanes) {
      const auto l = hn::Mul(factor, hn::LoadU(d, factors + kTriangleBlock + j));
      if (j >= begin) {
        fn(d, j, l);
      } else {
        const auto seen = hn::Ge(hn::Iota(d, static_cast<T>(j)), hn::Set(d, static_cast<T>(begin)));
        fn(d, j, hn::IfThenElseZero(seen, l));
      }
    }
  }
  const auto from = hn::Set(d, static_cast<T>(begin)), to = hn::Set(d, static_cast<T>(i));
  for (; j < block + kTriangleBlock; j += lanes) {
    if (j + lanes <= begin || j > i) {
      fn(d, j, hn::Zero(d));
      continue;
    }
    const auto index = hn::Iota(d, static_cast<T>(j));
    const auto seen = hn::And(hn::Ge(index, from), hn::Le(index, to));
    fn(d, j, hn::IfThenElseZero(seen, weights(i, j, T(1))));
  }
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
