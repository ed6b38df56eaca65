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
#include <array>
#include <cmath>

#include "kernels/cpu/address.h"
#include "kernels/cpu/block_gemm_operands-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/ssd_scan.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The model's chunk says where states are kept and from where positions count. Inside it work goes on in
// blocks of at most kBlockTokens: as results do not depend on where a row is cut, that alone decides what
// products with scores cost, and a block's operands stay in a near cache. Score matrices [q,q] of a block are
// lower triangles: blocks of kTriangleBlock rows stop at the diagonal.
constexpr int64_t kBlockTokens = 64;
constexpr int64_t kTriangleBlock = 16;
constexpr int64_t kRowsAsked = 5;          // of the next block, after each product
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
        longest(std::min({chunk, tokens, kBlockTokens})),
        padded((longest + kTriangleBlock - 1) / kTriangleBlock * kTriangleBlock),
        most_blocks(ssd_num_chunks(std::min(chunk, tokens), kBlockTokens)),
        by_group(fills_threads(stream.num_threads(), rows * groups)) {}
  int64_t length(int64_t c) const { return std::min(chunk, tokens - c * chunk); }  // tokens of chunk c
  int64_t blocks(int64_t c) const { return ssd_num_chunks(length(c), kBlockTokens); }
  int64_t heads_per_group() const { return heads / groups; }
  int64_t state_size() const { return head_dim * state_dim; }
  int64_t rows, tokens, heads, head_dim, state_dim, groups, chunk, chunks;
  int64_t longest;  // tokens of the longest block
  int64_t padded;   // the same, rounded up: leading dimension of score matrices
  int64_t most_blocks;
  // Where there are tasks enough for all threads, one thread takes a group through all chunks; else the
  // states that enter (backward: the gradients of those that leave) the chunks are formed first, then all
  // chunks at once. Same bits either way.
  bool by_group;

 private:
  static bool fills_threads(int64_t threads, int64_t tasks) {
    return (tasks + threads - 1) / threads * threads * 7 <= tasks * 8;
  }
};

// Block b of chunk c.
struct ScanBlock {
  ScanBlock(const ScanSizes& z, int64_t c, int64_t b)
      : position(b * kBlockTokens),
        begin(c * z.chunk + position),
        length(std::min(kBlockTokens, z.length(c) - position)) {}
  int64_t position;  // of its first token in the chunk
  int64_t begin;     // the same in the row
  int64_t length;
};

// Rows of the next block, asked for a few at a time while products run: rows of one head lie far apart, so
// that the processor foresees no such steps, and many requests at once would fill the queue to memory and
// stop everything behind them. Any addresses may be named.
class RowsAhead {
 public:
  void clear() { size_ = 0, left_ = kBlockTokens; }
  // Tokens [begin, begin + kBlockTokens) of [.., index, :]; to be written with `write`.
  void add(const Tensor& tensor, int64_t row, int64_t begin, int64_t index, bool write = false) {
    const int64_t size = dtype_bytes(tensor.dtype());
    const auto* line = static_cast<const std::byte*>(tensor.raw());
    line += (row * tensor.stride(0) + begin * tensor.stride(1) + index * tensor.stride(2)) * size;
    rows_[size_++] = {line, tensor.stride(1) * size, tensor.size(3) * size, write};
  }
  // The states of a chunk that enter it, of one head.
  void add_states(const Tensor& states, int64_t row, int64_t chunk, int64_t head, bool write = false) {
    const int64_t size = dtype_bytes(states.dtype());
    const auto* line = static_cast<const std::byte*>(states.raw());
    line += (row * states.stride(0) + chunk * states.stride(1) + head * states.stride(2)) * size;
    const int64_t part = states.stride(2) * size / kBlockTokens;  // as many parts as there are rows
    rows_[size_++] = {line, part, part, write};
  }
  // The next `count` rows of each.
  void ask(int64_t count) {
    constexpr int64_t kCacheLine = 64;
    for (; count > 0 && left_ > 0; --count, --left_) {
      for (size_t i = 0; i < size_; ++i) {
        Rows& rows = rows_[i];
        for (int64_t j = 0; j < rows.width; j += kCacheLine) {
          if (rows.write) {
            __builtin_prefetch(rows.line + j, 1, 2);
          } else {
            __builtin_prefetch(rows.line + j, 0, 2);
          }
        }
        rows.line += rows.step;
      }
    }
  }

 private:
  struct Rows {
    const std::byte* line;
    int64_t step, width;  // bytes
    bool write;
  };
  std::array<Rows, 8> rows_;  // what the backward names: x, dy, b, c, the states, dx, db, dc
  size_t size_ = 0;
  int64_t left_ = 0;
};

// first[i]: the last document start at or before token i of the block, -1 where there is none. Tokens with
// one `first` see each other; those with -1 see the state that enters.
inline void find_segments(const Tensor& start, int64_t row, int64_t begin, int64_t length, int32_t* first) {
  int32_t last = -1;
  for (int64_t i = 0; i < length; ++i) {
    if (start && *address<uint8_t>(start, row, begin + i)) last = static_cast<int32_t>(i);
    first[i] = last;
  }
}

// Of one head in one block; g is the running sum of a dt. g comes as high + low, because the differences of g
// that the scores need must be right relative to themselves.
template <class T>
struct Decay {
  static constexpr int64_t kArrays = 6;
  // In `memory`, [kArrays, padded].
  Decay(T* memory, int64_t padded)
      : dt(memory),
        high(dt + padded),
        low(high + padded),
        into(low + padded),
        out(into + padded),
        weight(out + padded) {}
  T* dt;
  T* high;
  T* low;
  T* into;    // exp(g_i): weight of the entering state at token i; 0 behind a document start
  T* out;     // exp(g_last - g_j): weight of token j in the leaving state; 0 before a document start
  T* weight;  // out dt
};

template <class T>
void compute_decay(const SsdInput& in, const ScanBlock& block, int64_t row, int64_t head,
                   const int32_t* first, const Decay<T>& decay) {
  const int64_t q = block.length;
  const T bias = *address<T>(in.dt_bias, head);
  const double a = -std::exp(static_cast<double>(*address<T>(in.a_log, head)));
  for (int64_t i = 0; i < q; ++i) decay.dt[i] = *address<T>(in.u, row, block.begin + i, head) + bias;
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
  for (int64_t i = 0; i < q; ++i) decay.weight[i] = decay.out[i] * decay.dt[i];
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

// Tokens of a group's B or C in the chunk's frame, times `scale`(i): rows [length,N] of `to`.
template <class S, class T, class Scale>
void rotate_rows(const SsdInput& in, const ScanSizes& z, const ScanBlock& block, const Tensor& from,
                 int64_t row, int64_t group, Scale&& scale, T* to) {
  const int64_t stride = from.stride(1);
  const S* token = address<S>(from, row, block.begin, group);
  for (int64_t i = 0; i < block.length; ++i) {
    rotate(in, block.position + i, T(1), scale(i), z.state_dim, token + i * stride, to + i * z.state_dim);
  }
}

// `pairs` of rows times weights, in `buffer` of pairs_size; the columns are even in number.
template <class E, class T>
Operand<E> as_weighted_pairs(int64_t rows, int64_t columns, const T* tile, const T* weights, E* buffer) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    pack_pairs(rows, columns, tile, columns, buffer, columns, weights);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for_lanes<T>(columns, [&](auto d, int64_t j) HWY_ATTR {
        const auto x = hn::LoadU(d, tile + i * columns + j);
        hn::StoreU(hn::Mul(x, hn::Set(d, weights[i])), d, buffer + i * columns + j);
      });
    }
  }
  return {buffer, columns};
}

// Rows of results: rounded to bf16, as operands are where the processor does that.
template <class E, class T, class S>
void write_rows(int64_t rows, int64_t columns, const T* from, S* to, int64_t ld_to) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    pack_rows(rows, columns, from, columns, to, ld_to);
  } else {
    pack(from, columns, rows, columns, to, ld_to);
  }
}

// block_gemm with requests in between: c's rows have no gap.
template <class E, class T>
void product(int64_t m, int64_t n, int64_t k, const StridedMatrix<E>& a, const Operand<E>& b, T* c, T beta,
             const T* scale, RowsAhead& ahead) {
  constexpr int64_t kRows = 24;  // whole register tiles
  for (int64_t i = 0; i < m; i += kRows) {
    block_gemm(std::min(kRows, m - i), n, k, StridedMatrix<E>{a.data + i * a.row, a.row, a.column}, b.data,
               b.ld, c + i * n, n, beta, scale == nullptr ? nullptr : scale + i);
    ahead.ask(kRowsAsked);
  }
}

// Scores of a block of q tokens: out = left right, columns up to the diagonal's block. `right` and `out` have
// rows `ld` apart.
template <class E, class T>
void lower_scores(int64_t q, int64_t depth, const Operand<E>& left, const E* right, int64_t ld, T* out,
                  RowsAhead& ahead) {
  for (int64_t i = 0; i < q; i += kTriangleBlock) {
    const int64_t m = std::min(kTriangleBlock, q - i);
    block_gemm(m, i + m, depth, Operand<E>{left.data + i * left.ld, left.ld}.rows(), right, ld, out + i * ld,
               ld, T(0));
    ahead.ask(kRowsAsked);
  }
}

// `pairs` of a lower-triangular matrix of operands with rows `ld` apart, up to the diagonal's block.
template <class E>
const E* lower_pairs(int64_t q, const E* lower, int64_t ld, E* buffer) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    for (int64_t i = 0; i < q; i += kTriangleBlock) {
      pack_pairs(std::min(kTriangleBlock, q - i), i + kTriangleBlock, lower + i * ld, ld, buffer + i * ld,
                 ld);
    }
    return buffer;
  }
  return lower;
}

// Rows of a product with a lower-triangular matrix that end at one column: as few as products of bf16 take at
// full speed. f32 multiplies the zeros behind the diagonal up to its block.
template <class E>
constexpr int64_t kTriangleRows = kPair<E> == 2 ? 8 : kTriangleBlock;

// c = beta c + lower b, with `rows` of lower.
template <class E, class T>
void lower_product(int64_t q, int64_t columns, const E* lower, int64_t ld, const Operand<E>& b, T* c,
                   int64_t ldc, T beta, RowsAhead& ahead) {
  for (int64_t i = 0; i < q; i += kTriangleRows<E>) {
    const int64_t m = std::min(kTriangleRows<E>, q - i);
    block_gemm(m, columns, i + m, Operand<E>{lower + i * ld, ld}.rows(), b.data, b.ld, c + i * ldc, ldc,
               beta);
    if (i % kTriangleBlock == 0) ahead.ask(kRowsAsked);
  }
}

// c += lower^T b, with `pairs` of lower and b.
template <class E, class T>
void add_lower_transposed_product(int64_t q, int64_t columns, const E* lower, int64_t ld, const Operand<E>& b,
                                  T* c, RowsAhead& ahead) {
  for (int64_t j = 0; j < q; j += kTriangleRows<E>) {
    const int64_t m = std::min(kTriangleRows<E>, q - j);
    const Operand<E> block{lower + j * ld + j * kPair<E>, ld};
    block_gemm(m, columns, q - j, block.transposed(), b.data + j * b.ld, b.ld, c + j * columns, columns,
               T(1));
    if (j % kTriangleBlock == 0) ahead.ask(kRowsAsked);
  }
}

// Calls fn(d, j, L) for the vectors of row i of the decay matrix L, L_ij = exp(g_i - g_j) for the tokens j
// that token i sees and 0 elsewhere (masked whatever the exponent was), from column 0 to the block of the
// diagonal. Columns before the diagonal's block are a product of a factor of the row and one of the column,
// both at most 1: exp(g_i - g_t) exp(g_t - g_j), t the block's first row. `factors` keeps them, [16 +
// padded], from row t on: rows come upwards.
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
  if (i == block) {
    for (int64_t j = 0; j < kTriangleBlock; j += lanes)
      hn::StoreU(weights(block, block + j, T(-1)), d, factors + j);
    for (int64_t j = 0; j < block; j += lanes)
      hn::StoreU(weights(block, j, T(1)), d, factors + kTriangleBlock + j);
  }
  const auto factor = hn::Set(d, factors[i - block]);
  int64_t j = 0;
  for (; j < block; j += lanes) {
    const auto l = hn::Mul(factor, hn::LoadU(d, factors + kTriangleBlock + j));
    if (j >= begin) {
      fn(d, j, l);
    } else {
      const auto seen = hn::Ge(hn::Iota(d, static_cast<T>(j)), hn::Set(d, static_cast<T>(begin)));
      fn(d, j, hn::IfThenElseZero(seen, l));
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
