// Highway 1.0.3 has no target with these instructions: the one file of the CPU backend in intrinsics.
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
template <int kRows, int kVectors, bool kMasked>
inline void tile(int64_t depth, StridedMatrix<BFloat16> a, const BFloat16* b, int64_t ldb, float* c,
                 int64_t ldc, bool accumulate, __mmask16 mask) {
  static_assert(!kMasked || kVectors == 1);
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const float* from = c + r * ldc + v * kLanes;
      sum[r][v] = !accumulate ? _mm512_setzero_ps()
                  : kMasked   ? _mm512_maskz_loadu_ps(mask, from)
                              : _mm512_loadu_ps(from);
    }
  }
  const BFloat16* column = a.data;
  for (int64_t k = 0; k < depth; k += 2) {
    __m512i right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      right[v] = kMasked ? _mm512_maskz_loadu_epi32(mask, b) : _mm512_loadu_si512(b + v * 2 * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i left = broadcast_pair(column + r * a.row);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], reinterpret_cast<__m512bh>(left),
                                     reinterpret_cast<__m512bh>(right[v]));
      }
    }
    column += a.column;
    b += 2 * ldb;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * ldc + v * kLanes;
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
           int64_t ldc, bool accumulate, __mmask16 mask) {
  int64_t i = 0;
  const auto row = [&] { return StridedMatrix<BFloat16>{a.data + i * a.row, a.row, a.column}; };
  for (; i + 8 <= m; i += 8) tile<8, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, accumulate, mask);
  for (; i + 4 <= m; i += 4) tile<4, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, accumulate, mask);
  for (; i < m; ++i) tile<1, kVectors, kMasked>(k, row(), b, ldb, c + i * ldc, ldc, accumulate, mask);
}

__m256i round_16(__m512 x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
}

// 16 pairs of two rows, the second of which may be missing.
__m512i load_pairs(const float* row, const float* next, __mmask16 mask) {
  const __m512i low = _mm512_cvtepu16_epi32(round_16(_mm512_maskz_loadu_ps(mask, row)));
  if (next == nullptr) return low;
  const __m512i high = _mm512_cvtepu16_epi32(round_16(_mm512_maskz_loadu_ps(mask, next)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
__m512i load_pairs(const BFloat16* row, const BFloat16* next, __mmask16 mask) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
  if (next == nullptr) return low;
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, next));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

template <class T>
void interleave_rows(int64_t rows, int64_t columns, const T* in, int64_t ld_in, BFloat16* out,
                     int64_t ld_out) {
  for (int64_t r = 0; r < rows; r += 2) {
    const T* row = in + r * ld_in;
    for (int64_t j = 0; j < columns; j += kLanes) {
      const __mmask16 mask = first_lanes(columns - j);
      const T* next = r + 1 < rows ? row + ld_in + j : nullptr;
      _mm512_mask_storeu_epi32(out + r * ld_out + 2 * j, mask, load_pairs(row + j, next, mask));
    }
  }
}

__m128i load_8(const float* from) {
  return reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(_mm256_loadu_ps(from)));
}
__m128i load_8(const BFloat16* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Blocks of 16 rows by 4 pairs. A vector takes 4 pairs of the rows i, i + 4, i + 8, i + 12, so that four
// transposes of 4 x 4 inside its lanes leave 16 rows in order.
template <class T>
void transpose_pairs(int64_t rows, int64_t columns, const T* in, int64_t ld_in, BFloat16* out,
                     int64_t ld_out) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const __mmask16 mask = first_lanes(rows - r);
    for (int64_t j = 0; j < columns; j += 8) {
      __m512i part[4];
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        const auto row = [&](int64_t lane) {
          const int64_t index = r + 4 * lane + i;
          return index < rows ? load_8(in + index * ld_in + j) : _mm_setzero_si128();
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
                                 _mm512_unpacklo_epi64(high01, high23),
                                 _mm512_unpackhi_epi64(high01, high23)};
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        _mm512_mask_storeu_epi32(out + 2 * ((j / 2 + i) * ld_out + r), mask, turned[i]);
      }
    }
  }
}

}  // namespace

void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<BFloat16> a, const BFloat16* b, int64_t ldb,
                float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    strip<2, false>(m, k, a, b + 2 * j, ldb, c + j, ldc, accumulate, 0);
  }
  if (j + kLanes <= n) {
    strip<1, false>(m, k, a, b + 2 * j, ldb, c + j, ldc, accumulate, 0);
    j += kLanes;
  }
  if (j < n) strip<1, true>(m, k, a, b + 2 * j, ldb, c + j, ldc, accumulate, first_lanes(n - j));
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

void pack_pairs(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out,
                int64_t ld_out) {
  interleave_rows(rows, columns, in, ld_in, out, ld_out);
}
void pack_pairs(int64_t rows, int64_t columns, const BFloat16* in, int64_t ld_in, BFloat16* out,
                int64_t ld_out) {
  interleave_rows(rows, columns, in, ld_in, out, ld_out);
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
