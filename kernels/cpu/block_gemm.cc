#include "kernels/cpu/block_gemm.h"

#include <algorithm>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/block_gemm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of a register tile of two vectors: 16 accumulators of AVX-512's 32 registers, 8 of 16 otherwise.
constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 8 : 4;

// One register tile: kRows rows by kVectors vectors; with kMasked the last vector holds `lanes` columns.
template <class T, int kRows, int kVectors, bool kMasked>
HWY_INLINE void tile(int64_t depth, StridedMatrix<T> a, const T* HWY_RESTRICT b, int64_t ldb,
                     T* HWY_RESTRICT c, int64_t ldc, T beta, const T* scale, size_t lanes) {
  static_assert(!kMasked || kVectors == 1);
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t width = static_cast<int64_t>(hn::Lanes(d));
  const auto mask = hn::FirstN(d, lanes);
  // Row after row of c, by a pointer whose steps the compiler does not foresee: addresses kept over the loop
  // would go to vector registers, from where they come behind all products under way.
  const auto next_row = [ldc](T* row) {
    asm("" : "+r"(row));
    return row + ldc;
  };
  const auto old = [&](const T* row, int v) HWY_ATTR {
    if constexpr (kMasked) return hn::Mul(hn::Set(d, beta), hn::MaskedLoad(mask, d, row));
    return hn::Mul(hn::Set(d, beta), hn::LoadU(d, row + v * width));
  };
  const bool start = beta != 0 && scale == nullptr;
  V sum[kRows][kVectors];
  T* row = c;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = start ? old(row, v) : hn::Zero(d);
    row = next_row(row);
  }
  const T* HWY_RESTRICT column = a.data;
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kMasked) {
        right[v] = hn::MaskedLoad(mask, d, b);
      } else {
        right[v] = hn::LoadU(d, b + v * width);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V left = hn::Set(d, column[r * a.row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
    }
    column += a.column;
    b += ldb;
  }
  row = c;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if (scale != nullptr) {
        const V factor = hn::Set(d, scale[r]);
        sum[r][v] = beta == 0 ? hn::Mul(factor, sum[r][v]) : hn::MulAdd(factor, sum[r][v], old(row, v));
      }
      if constexpr (kMasked) {
        hn::BlendedStore(sum[r][v], mask, d, row);
      } else {
        hn::StoreU(sum[r][v], d, row + v * width);
      }
    }
    row = next_row(row);
  }
}

// All rows of one strip of columns.
template <class T, int kVectors, bool kMasked>
void strip(int64_t m, int64_t k, StridedMatrix<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, T beta,
           const T* scale, size_t lanes) {
  int64_t i = 0;
  const auto row = [&] { return StridedMatrix<T>{a.data + i * a.row, a.row, a.column}; };
  const auto factors = [&] { return scale == nullptr ? nullptr : scale + i; };
  for (; i + kTileRows <= m; i += kTileRows) {
    tile<T, kTileRows, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, beta, factors(), lanes);
  }
  if constexpr (kTileRows > 4) {
    for (; i + 4 <= m; i += 4) {
      tile<T, 4, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, beta, factors(), lanes);
    }
  }
  for (; i < m; ++i)
    tile<T, 1, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, beta, factors(), lanes);
}

template <class T>
HWY_INLINE void gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<T> a, const T* b, int64_t ldb, T* c,
                     int64_t ldc, T beta, const T* scale) {
  const hn::ScalableTag<T> d;
  const int64_t width = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + 2 * width <= n; j += 2 * width) {
    strip<T, 2, false>(m, k, a, b + j, ldb, c + j, ldc, beta, scale, 0);
  }
  if (j + width <= n) {
    strip<T, 1, false>(m, k, a, b + j, ldb, c + j, ldc, beta, scale, 0);
    j += width;
  }
  if (j < n) strip<T, 1, true>(m, k, a, b + j, ldb, c + j, ldc, beta, scale, static_cast<size_t>(n - j));
}

void gemm_f32(int64_t m, int64_t n, int64_t k, StridedMatrix<float> a, const float* b, int64_t ldb, float* c,
              int64_t ldc, float beta, const float* scale) {
  gemm(m, n, k, a, b, ldb, c, ldc, beta, scale);
}

void gemm_f64(int64_t m, int64_t n, int64_t k, StridedMatrix<double> a, const double* b, int64_t ldb,
              double* c, int64_t ldc, double beta, const double* scale) {
  gemm(m, n, k, a, b, ldb, c, ldc, beta, scale);
}

// Blocks of 128 bits from every kBlock-th row, the first row's lowest.
template <int64_t kBlock, class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_blocks(D d, const T* from, int64_t ld) {
  if constexpr (hn::MaxLanes(D()) <= kBlock) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    const int64_t rows = static_cast<int64_t>(hn::MaxLanes(half));
    return Combine(d, load_blocks<kBlock>(half, from + rows * ld, ld), load_blocks<kBlock>(half, from, ld));
  }
}

// Columns [0, columns) of one strip of as many rows as a vector has lanes: in blocks of 128 bits, 4 x 4
// floats or 2 x 2 doubles (1 x 1 without vectors, where the interleaving functions do not exist: hence their
// names without a namespace, looked up by argument).
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void transpose_strip(D d, int64_t columns, const T* in, int64_t ld_in, T* out, int64_t ld_out,
                                T scale) {
  constexpr int64_t kLanes = hn::MaxLanes(D()), kBlock = std::min<int64_t>(kLanes, 16 / sizeof(T));
  const auto factor = hn::Set(d, scale);
  int64_t j = 0;
  for (; j + kBlock <= columns; j += kBlock) {
    const auto row = [&](int64_t i) HWY_ATTR {
      return hn::Mul(factor, load_blocks<kBlock>(d, in + i * ld_in + j, ld_in));
    };
    T* to = out + j * ld_out;
    const auto a0 = row(0);
    if constexpr (kBlock == 4) {
      const auto a1 = row(1), a2 = row(2), a3 = row(3);
      const auto low02 = InterleaveLower(d, a0, a2), low13 = InterleaveLower(d, a1, a3);
      const auto high02 = InterleaveUpper(d, a0, a2), high13 = InterleaveUpper(d, a1, a3);
      hn::StoreU(InterleaveLower(d, low02, low13), d, to);
      hn::StoreU(InterleaveUpper(d, low02, low13), d, to + ld_out);
      hn::StoreU(InterleaveLower(d, high02, high13), d, to + 2 * ld_out);
      hn::StoreU(InterleaveUpper(d, high02, high13), d, to + 3 * ld_out);
    } else if constexpr (kBlock == 2) {
      const auto a1 = row(1);
      hn::StoreU(InterleaveLower(d, a0, a1), d, to);
      hn::StoreU(InterleaveUpper(d, a0, a1), d, to + ld_out);
    } else {
      hn::StoreU(a0, d, to);
    }
  }
  for (; j < columns; ++j) {
    for (int64_t r = 0; r < kLanes; ++r) out[j * ld_out + r] = scale * in[r * ld_in + j];
  }
}

template <class T>
HWY_INLINE void transpose_blocks(int64_t rows, int64_t columns, const T* in, int64_t ld_in, T* out,
                                 int64_t ld_out, T scale) {
  int64_t r = 0;
  const auto strips = [&](auto d) HWY_ATTR {
    constexpr int64_t kLanes = hn::MaxLanes(decltype(d)());
    for (; r + kLanes <= rows; r += kLanes) {
      transpose_strip(d, columns, in + r * ld_in, ld_in, out + r, ld_out, scale);
    }
  };
  strips(hn::ScalableTag<T>());
  strips(hn::CappedTag<T, 16 / sizeof(T)>());
  strips(hn::CappedTag<T, 1>());
}

void transpose_f32(int64_t rows, int64_t columns, const float* in, int64_t ld_in, float* out, int64_t ld_out,
                   float scale) {
  transpose_blocks(rows, columns, in, ld_in, out, ld_out, scale);
}

void transpose_f64(int64_t rows, int64_t columns, const double* in, int64_t ld_in, double* out,
                   int64_t ld_out, double scale) {
  transpose_blocks(rows, columns, in, ld_in, out, ld_out, scale);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(gemm_f32);
HWY_EXPORT(gemm_f64);
HWY_EXPORT(transpose_f32);
HWY_EXPORT(transpose_f64);

void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<float> a, const float* b, int64_t ldb,
                float* c, int64_t ldc, float beta, const float* scale) {
  HWY_DYNAMIC_DISPATCH(gemm_f32)(m, n, k, a, b, ldb, c, ldc, beta, scale);
}

void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<double> a, const double* b, int64_t ldb,
                double* c, int64_t ldc, double beta, const double* scale) {
  HWY_DYNAMIC_DISPATCH(gemm_f64)(m, n, k, a, b, ldb, c, ldc, beta, scale);
}

void transpose(int64_t rows, int64_t columns, const float* in, int64_t ld_in, float* out, int64_t ld_out,
               float scale) {
  HWY_DYNAMIC_DISPATCH(transpose_f32)(rows, columns, in, ld_in, out, ld_out, scale);
}

void transpose(int64_t rows, int64_t columns, const double* in, int64_t ld_in, double* out, int64_t ld_out,
               double scale) {
  HWY_DYNAMIC_DISPATCH(transpose_f64)(rows, columns, in, ld_in, out, ld_out, scale);
}

}  // namespace transxssm::cpu
#endif
