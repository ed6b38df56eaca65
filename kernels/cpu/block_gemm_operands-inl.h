// Operands of block products in the layouts kernels/cpu/block_gemm_bf16.h names, for any type: where products
// take no pairs, `rows` and `pairs` are the matrix itself. So that one text serves f64, f32 and bf16.
// Compiled once an instruction set: hence the guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_BLOCK_GEMM_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_BLOCK_GEMM_OPERANDS_INL_H_
#undef TRANSXSSM_KERNELS_CPU_BLOCK_GEMM_OPERANDS_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_BLOCK_GEMM_OPERANDS_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/block_gemm_bf16.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/silu-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "runtime/cpu_features.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Types of a kernel made of block products.
template <class Storage_, class Operand_>
struct Precision {
  using Storage = Storage_;          // activations in memory
  using Operand = Operand_;          // operands of block products
  using Real = Arithmetic<Storage>;  // everything else
};

// Calls fn(Precision) for activations of this dtype, products not rounded before they are summed up.
template <class Fn>
void with_wide_operands(DType dtype, Fn&& fn) {
  if (dtype == DType::f32) return fn(Precision<float, float>{});
  if (dtype == DType::f64) return fn(Precision<double, double>{});
  fn(Precision<BFloat16, float>{});
}

// The same with bf16 operands where the processor multiplies them.
template <class Fn>
void with_precision(DType dtype, Fn&& fn) {
  if constexpr (HWY_TARGET <= HWY_AVX3) {
    if (dtype == DType::bf16 && cpu_has_bf16()) return fn(Precision<BFloat16, BFloat16>{});
  }
  with_wide_operands(dtype, fn);
}

// Elements of an operand that a step along the depth takes.
template <class E>
constexpr int64_t kPair = std::is_same_v<E, BFloat16> ? 2 : 1;

// exp(x) for x of at most 0, a weight that becomes an operand: what is rounded to bf16 needs no more than the
// rough exponential. A NaN stays one.
template <class E, class D, class V = hn::Vec<D>>
HWY_INLINE V weight_exp(D d, V x) {
  if constexpr (kPair<E> == 2) return hn::IfThenZeroElse(hn::Le(x, hn::Set(d, -87)), rough_exp(d, x));
  return hn::Exp(d, x);
}

// A vector as elements of an operand; of those the processor multiplies in bf16, subnormals are zero.
template <class E, class D>
HWY_INLINE void store_operand(hn::Vec<D> v, D d, E* to) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    round_operand(v, reinterpret_cast<uint16_t*>(to));
  } else {
    hn::StoreU(v, d, to);
  }
}

// A tile as operand: in `rows` or in `pairs`.
template <class E>
struct Operand {
  const E* data;
  int64_t ld;
  // As a left operand: of `rows` the matrix, of `pairs` its transpose.
  StridedMatrix<E> rows() const { return {data, ld, kPair<E>}; }
  StridedMatrix<E> transposed() const { return {data, kPair<E>, kPair<E> * ld}; }
};

// Elements that `pairs` of so many rows and columns take.
template <class E>
constexpr int64_t pairs_size(int64_t rows, int64_t columns) {
  return (rows + kPair<E> - 1) / kPair<E> * kPair<E> * columns;
}

// One element.
template <class T, class S>
T widened(S x) {
  if constexpr (std::is_same_v<S, T>) {
    return x;
  } else {
    return to_float(x);
  }
}
template <class T, class S>
void round_to(T x, S* to) {
  if constexpr (std::is_same_v<S, T>) {
    *to = x;
  } else {
    *to = to_bfloat16(x);
  }
}

// Copies `count` rows of `width` elements, `stride` apart, to rows `stride_to` apart; bf16 is widened where
// `to` is not, and rounded to.
template <class S, class E>
void pack(const S* from, int64_t stride, int64_t count, int64_t width, E* to, int64_t stride_to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<S, E>) {
      std::copy_n(from + i * stride, width, to + i * stride_to);
    } else {
      for_lanes<float>(width, [&](auto d, int64_t j) HWY_ATTR {
        store(load(d, from + i * stride + j), d, to + i * stride_to + j);
      });
    }
  }
}
template <class S, class E>
void pack(const S* from, int64_t stride, int64_t count, int64_t width, E* to) {
  pack(from, stride, count, width, to, width);
}

// `rows` of a tile, whose columns are even in number: the tile itself, or in `buffer`, rows `columns` apart.
template <class E, class T>
Operand<E> as_rows(int64_t rows, int64_t columns, const T* tile, int64_t ld, E* buffer) {
  if constexpr (std::is_same_v<E, T>) {
    return {tile, ld};
  } else if constexpr (std::is_same_v<E, BFloat16>) {
    pack_rows(rows, columns, tile, ld, buffer, columns);
    return {buffer, columns};
  } else {
    pack(tile, ld, rows, columns, buffer);
    return {buffer, columns};
  }
}

// `pairs` of a tile, in the same way; `buffer` takes pairs_size.
template <class E, class T>
Operand<E> as_pairs(int64_t rows, int64_t columns, const T* tile, int64_t ld, E* buffer) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    pack_pairs(rows, columns, tile, ld, buffer, columns);
    return {buffer, columns};
  } else {
    return as_rows(rows, columns, tile, ld, buffer);
  }
}

// `columns` of a tile.
template <class E, class T>
void write_columns(int64_t rows, int64_t columns, const T* tile, int64_t ld, E* out, int64_t ld_out) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    pack_columns(rows, columns, tile, ld, out, ld_out);
  } else {
    transpose(rows, columns, tile, ld, out, ld_out);
  }
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
