// Highway 1.0.3 has no target with these instructions: in intrinsics, as gemm_panels.cc.
#include "kernels/cpu/block_gemm_bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace transxssm::cpu {

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 warns of its own shuffles
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

namespace {

constexpr int64_t kLanes = 16;  // floats, or pairs, of a vector

__mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLanes)) - 1);
}

__m512i broadcast_pair(const BFloat16* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// One register tile: kRows rows by kVectors vectors; with kMasked the last vector holds the lanes of `mask`.
// The left operand's fields come one by one: the compiler copies a struct through vectors, and then the first
// loads of a tile wait until every product of the tile before is done.
template <int kRows, int kVectors, bool kMasked>
inline void tile(int64_t depth, const BFloat16* column, int64_t row_step, int64_t column_step,
                 const BFloat16* b, int64_t ldb, float* c, int64_t ldc, float beta, const float* scale,
                 __mmask16 mask) {
  static_assert(!kMasked || kVectors == 1);
  // Row after row of c, by a pointer whose steps the compiler does not foresee: addresses kept over the
  // loop would not leave registers enough.
  const auto next_row = [ldc](float* row) {
    asm("" : "+r"(row));
    return row + ldc;
  };
  const auto old = [&](const float* from) {
    const __m512 x = kMasked ? _mm512_maskz_loadu_ps(mask, from) : _mm512_loadu_ps(from);
    return _mm512_mul_ps(_mm512_set1_ps(beta), x);
  };
  __m512 sum[kRows][kVectors];
  if (beta != 0 && scale == nullptr) {
    float* row = c;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r, row = next_row(row)) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = old(row + v * kLanes);
    }
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
    }
  }
  // Three rows by one pointer, again hidden from the compiler: with a register a row it would keep addresses
  // in vector registers, from where they come behind all products under way.
  constexpr int kPointers = (kRows + 2) / 3;
  const BFloat16* left_rows[kPointers];
#pragma GCC unroll 4
  for (int p = 0; p < kPointers; ++p) {
    left_rows[p] = column + 3 * p * row_step;
    asm("" : "+r"(left_rows[p]));
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512i right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      right[v] = kMasked ? _mm512_maskz_loadu_epi32(mask, b) : _mm512_loadu_si512(b + v * 2 * kLanes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i left = broadcast_pair(left_rows[r / 3] + r % 3 * row_step);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], reinterpret_cast<__m512bh>(left),
                                     reinterpret_cast<__m512bh>(right[v]));
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPointers; ++p) left_rows[p] += column_step;
    b += 2 * ldb;
  }
  float* row = c;
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r, row = next_row(row)) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* to = row + v * kLanes;
      if (scale != nullptr) {
        const __m512 factor = _mm512_set1_ps(scale[r]);
        sum[r][v] =
            beta == 0 ? _mm512_mul_ps(factor, sum[r][v]) : _mm512_fmadd_ps(factor, sum[r][v], old(to));
      }
      if constexpr (kMasked) {
        _mm512_mask_storeu_ps(to, mask, sum[r][v]);
      } else {
        _mm512_storeu_ps(to, sum[r][v]);
      }
    }
  }
}

// All rows of one strip of columns.
template <int kVectors, bool kMasked>
void strip(int64_t m, int64_t k, StridedMatrix<BFloat16> a, const BFloat16* b, int64_t ldb, float* c,
           int64_t ldc, float beta, const float* scale, __mmask16 mask) {
  int64_t i = 0;
  const auto row = [&] { return a.data + i * a.row; };
  const auto factors = [&] { return scale == nullptr ? nullptr : scale + i; };
  for (; i + 12 <= m; i += 12)
    tile<12, kVectors, kMasked>(k, row(), a.row, a.column, b, ldb, c + i * ldc, ldc, beta, factors(), mask);
  for (; i + 8 <= m; i += 8)
    tile<8, kVectors, kMasked>(k, row(), a.row, a.column, b, ldb, c + i * ldc, ldc, beta, factors(), mask);
  for (; i + 4 <= m; i += 4)
    tile<4, kVectors, kMasked>(k, row(), a.row, a.column, b, ldb, c + i * ldc, ldc, beta, factors(), mask);
  for (; i < m; ++i)
    tile<1, kVectors, kMasked>(k, row(), a.row, a.column, b, ldb, c + i * ldc, ldc, beta, factors(), mask);
}

__m256i round_16(__m512 x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
}

// The two halves of x, element by element in turn.
__m512i interleave_halves(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}

// 16 pairs of two rows, times their weights where there are any.
template <bool kMasked>
__m512i load_pairs(const float* row, const float* next, __mmask16 mask, const float* weights) {
  const auto load = [&](const float* from) {
    return kMasked ? _mm512_maskz_loadu_ps(mask, from) : _mm512_loadu_ps(from);
  };
  __m512 low = load(row), high = load(next);
  if (weights != nullptr) {
    low = _mm512_mul_ps(low, _mm512_set1_ps(weights[0]));
    high = _mm512_mul_ps(high, _mm512_set1_ps(weights[1]));
  }
  return interleave_halves(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}
template <bool kMasked>
__m512i load_pairs(const BFloat16* row, const BFloat16* next, __mmask16 mask, const float*) {
  const auto load = [&](const BFloat16* from) {
    return kMasked ? _mm256_maskz_loadu_epi16(mask, from)
                   : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  };
  return interleave_halves(_mm512_inserti64x4(_mm512_castsi256_si512(load(row)), load(next), 1));
}

// A missing last row is zero, whatever stands in the memory behind.
template <class T>
void interleave_rows(int64_t rows, int64_t columns, const T* in, int64_t ld_in, BFloat16* out, int64_t ld_out,
                     const float* weights) {
  for (int64_t r = 0; r < rows; r += 2) {
    const bool whole = r + 1 < rows;
    const T* row = in + r * ld_in;
    const T* next = whole ? row + ld_in : row;
    const float pair[2] = {weights == nullptr ? 1 : weights[r],
                           weights == nullptr || !whole ? 1 : weights[r + 1]};
    const float* factors = weights == nullptr ? nullptr : pair;
    const __m512i keep = _mm512_set1_epi32(whole ? -1 : 0xffff);
    BFloat16* to = out + r * ld_out;
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      const __m512i pairs = load_pairs<false>(row + j, next + j, 0, factors);
      _mm512_storeu_si512(to + 2 * j, _mm512_and_si512(pairs, keep));
    }
    if (j == columns) continue;
    const __mmask16 mask = first_lanes(columns - j);
    const __m512i pairs = load_pairs<true>(row + j, next + j, mask, factors);
    _mm512_mask_storeu_epi32(to + 2 * j, mask, _mm512_and_si512(pairs, keep));
  }
}

__m128i load_8(const float* from) {
  return reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(_mm256_loadu_ps(from)));
}
__m128i load_8(const BFloat16* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Blocks of up to 16 rows (kWhole: of 16) by 4 pairs. A vector takes 4 pairs of the rows i, i + 4, i + 8,
// i + 12, so that four transposes of 4 x 4 inside its lanes leave 16 rows in order.
template <bool kWhole, class T>
void transpose_strip(int64_t rows, int64_t columns, const T* in, int64_t ld_in, BFloat16* out,
                     int64_t ld_out) {
  const __mmask16 mask = first_lanes(rows);
  for (int64_t j = 0; j < columns; j += 8) {
    __m512i part[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const auto row = [&](int64_t lane) {
        const int64_t index = 4 * lane + i;
        return kWhole || index < rows ? load_8(in + index * ld_in + j) : _mm_setzero_si128();
      };
      part[i] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
      part[i] = _mm512_inserti32x4(part[i], row(2), 2);
      part[i] = _mm512_inserti32x4(part[i], row(3), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(part[0], part[1]),
                  low23 = _mm512_unpacklo_epi32(part[2], part[3]),
                  high01 = _mm512_unpackhi_epi32(part[0], part[1]),
                  high23 = _mm512_unpackhi_epi32(part[2], part[3]);
    const __m512i turned[4] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                               _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      BFloat16* to = out + (j + 2 * i) * ld_out;
      if constexpr (kWhole) {
        _mm512_storeu_si512(to, turned[i]);
      } else {
        _mm512_mask_storeu_epi32(to, mask, turned[i]);
      }
    }
  }
}

template <class T>
void transpose_pairs(int64_t rows, int64_t columns, const T* in, int64_t ld_in, BFloat16* out,
                     int64_t ld_out) {
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes)
    transpose_strip<true>(kLanes, columns, in + r * ld_in, ld_in, out + 2 * r, ld_out);
  if (r < rows) transpose_strip<false>(rows - r, columns, in + r * ld_in, ld_in, out + 2 * r, ld_out);
}

}  // namespace

void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<BFloat16> a, const BFloat16* b, int64_t ldb,
                float* c, int64_t ldc, float beta, const float* scale) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    strip<2, false>(m, k, a, b + 2 * j, ldb, c + j, ldc, beta, scale, 0);
  }
  if (j + kLanes <= n) {
    strip<1, false>(m, k, a, b + 2 * j, ldb, c + j, ldc, beta, scale, 0);
    j += kLanes;
  }
  if (j < n) strip<1, true>(m, k, a, b + 2 * j, ldb, c + j, ldc, beta, scale, first_lanes(n - j));
}

void pack_rows(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = in + r * ld_in;
    BFloat16* to = out + r * ld_out;
    int64_t j = 0;
    for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
      const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + j + kLanes), _mm512_loadu_ps(from + j));
      _mm512_storeu_si512(to + j, reinterpret_cast<__m512i>(x));
    }
    for (; j < columns; j += kLanes) {
      const __m512 x = _mm512_maskz_loadu_ps(first_lanes(columns - j), from + j);
      _mm256_mask_storeu_epi16(to + j, first_lanes((columns - j + 1) / 2 * 2), round_16(x));
    }
  }
}

void pack_pairs(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out, int64_t ld_out,
                const float* weights) {
  interleave_rows(rows, columns, in, ld_in, out, ld_out, weights);
}
void pack_pairs(int64_t rows, int64_t columns, const BFloat16* in, int64_t ld_in, BFloat16* out,
                int64_t ld_out) {
  interleave_rows(rows, columns, in, ld_in, out, ld_out, nullptr);
}

void pack_columns(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out,
                  int64_t ld_out) {
  transpose_pairs(rows, columns, in, ld_in, out, ld_out);
}
void pack_columns(int64_t rows, int64_t columns, const BFloat16* in, int64_t ld_in, BFloat16* out,
                  int64_t ld_out) {
  transpose_pairs(rows, columns, in, ld_in, out, ld_out);
}

#pragma GCC pop_options

}  // namespace transxssm::cpu
#endif
