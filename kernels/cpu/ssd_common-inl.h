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
#include "kernels/cpu/block_gemm.h"
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
  explicit ScanSizes(const SsdInput& in)
      : rows(in.x.size(0)),
        tokens(in.x.size(1)),
        heads(in.x.size(2)),
        head_dim(in.x.size(3)),
        state_dim(in.b.size(3)),
        groups(in.b.size(2)),
        chunk(in.chunk),
        chunks(ssd_num_chunks(tokens, chunk)),
        longest(std::min(chunk, tokens)),
        padded((longest + kTriangleBlock - 1) / kTriangleBlock * kTriangleBlock) {}
  int64_t length(int64_t c) const { return std::min(chunk, tokens - c * chunk); }  // tokens of chunk c
  int64_t heads_per_group() const { return heads / groups; }
  // Where there are tasks enough for all threads, one thread takes a group through all chunks and finds a
  // chunk's tokens in its cache again; else the states are formed first, then all chunks at once. Same bits
  // either way.
  bool by_group(const Stream& stream) const {
    const int64_t tasks = rows * groups, threads = stream.num_threads();
    return (tasks + threads - 1) / threads * threads * 7 <= tasks * 8;
  }

  int64_t rows, tokens, heads, head_dim, state_dim, groups, chunk, chunks;
  int64_t longest;  // tokens of the longest chunk
  int64_t padded;   // the same, rounded up: leading dimension of score matrices
};

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
  // In `decays`, [rows, heads, chunks, kArrays, padded].
  Decay(T* decays, const ScanSizes& z, int64_t row, int64_t head, int64_t c)
      : dt(decays + ((row * z.heads + head) * z.chunks + c) * kArrays * z.padded),
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
template <class T>
HWY_INLINE void rotate(const SsdInput& in, int64_t position, T sign, T scale, int64_t size, const T* from,
                       T* to) {
  if (!in.cos) {
    for (int64_t j = 0; j < size; ++j) to[j] = scale * from[j];
    return;
  }
  const T* cos = address<T>(in.cos, position);
  const T* sin = address<T>(in.sin, position);
  const int64_t half = size / 2;
  for_lanes<T>(half, [&](auto d, int64_t j) HWY_ATTR {
    const auto x = hn::LoadU(d, from + j), y = hn::LoadU(d, from + half + j);
    const auto c = hn::Mul(hn::Set(d, scale), hn::LoadU(d, cos + j));
    const auto s = hn::Mul(hn::Set(d, scale * sign), hn::LoadU(d, sin + j));
    hn::StoreU(hn::NegMulAdd(y, s, hn::Mul(x, c)), d, to + j);
    hn::StoreU(hn::MulAdd(y, c, hn::Mul(x, s)), d, to + half + j);
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

// Copies `count` rows of `width` elements.
template <class T>
void pack(const T* from, int64_t stride, int64_t count, int64_t width, T* to) {
  for (int64_t i = 0; i < count; ++i) std::copy_n(from + i * stride, width, to + i * width);
}

template <class T>
T scale_of_c(const SsdInput& in, int64_t row, int64_t token) {
  return in.c_scale ? *address<T>(in.c_scale, row, token) : T(1);
}

// Rows [begin, end) of out = left right, columns up to the diagonal's block. `left` and `out` start at row
// begin.
template <class T>
void lower_scores(int64_t begin, int64_t end, int64_t depth, const T* left, const T* right, int64_t ld,
                  T* out) {
  for (int64_t i = begin; i < end; i += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - i);
    block_gemm(m, i + m, depth, StridedMatrix<T>{left + (i - begin) * depth, depth, 1}, right, ld,
               out + (i - begin) * ld, ld, false);
  }
}

// Rows [begin, end) of c += lower b. `lower` and `c` start at row begin.
template <class T>
void add_lower_product(int64_t begin, int64_t end, int64_t columns, const T* lower, int64_t ld, const T* b,
                       T* c, int64_t ldc) {
  for (int64_t i = begin; i < end; i += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - i);
    block_gemm(m, columns, i + m, StridedMatrix<T>{lower + (i - begin) * ld, ld, 1}, b, columns,
               c + (i - begin) * ldc, ldc, true);
  }
}

// c += lower^T b with rows [begin, end) of lower and b; `lower` starts at row begin, b and c at row 0.
template <class T>
void add_lower_transposed_product(int64_t begin, int64_t end, int64_t columns, const T* lower, int64_t ld,
                                  const T* b, T* c) {
  if (begin > 0) {
    block_gemm(begin, columns, end - begin, StridedMatrix<T>{lower, 1, ld}, b + begin * columns, columns, c,
               columns, true);
  }
  for (int64_t j = begin; j < end; j += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, end - j);
    block_gemm(m, columns, end - j, StridedMatrix<T>{lower + (j - begin) * ld + j, 1, ld}, b + j * columns,
               columns, c + j * columns, columns, true);
  }
}

// Calls fn(d, j, L) for the vectors of row i of the decay matrix L, L_ij = exp(g_i - g_j) for the tokens j
// that token i sees and 0 elsewhere (masked whatever the exponent was), from column 0 to the block of the
// diagonal.
template <class T, class Fn>
HWY_INLINE void for_decay_row(int64_t i, const int32_t* first, const Decay<T>& decay, Fn&& fn) {
  const hn::CappedTag<T, kTriangleBlock> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t begin = std::max<int64_t>(first[i], 0);
  const auto high = hn::Set(d, decay.high[i]), low = hn::Set(d, decay.low[i]);
  const auto from = hn::Set(d, static_cast<T>(begin)), to = hn::Set(d, static_cast<T>(i));
  const int64_t end = (i / kTriangleBlock + 1) * kTriangleBlock;
  for (int64_t j = 0; j < end; j += lanes) {
    if (j + lanes <= begin || j > i) {
      fn(d, j, hn::Zero(d));
      continue;
    }
    const auto index = hn::Iota(d, static_cast<T>(j));
    const auto difference =
        hn::Add(hn::Sub(high, hn::LoadU(d, decay.high + j)), hn::Sub(low, hn::LoadU(d, decay.low + j)));
    const auto seen = hn::And(hn::Ge(index, from), hn::Le(index, to));
    fn(d, j, hn::IfThenElseZero(seen, hn::Exp(d, hn::Min(difference, hn::Zero(d)))));
  }
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
