// Register tiles and panels of gemm_panels.cc, which includes this once, where AVX-512 is allowed.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "runtime/dtype.h"

namespace transxssm::cpu {
namespace {

// A unit is what one lane multiplies at once: 32 bits, a float or a pair of bf16 neighbours along k.
constexpr int64_t kLanes = 16;
constexpr int64_t kColumns = 32;  // of a panel and of a register tile
constexpr int64_t kRows = 8;      // of a register tile
template <class T>
constexpr int64_t kDepth = 4 / static_cast<int64_t>(sizeof(T));  // elements of k in a unit

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
struct Mask {
  explicit Mask(int64_t columns) {
    const auto first = [](int64_t count) {
      return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLanes)) - 1);
    };
    lane[0] = first(columns);
    lane[1] = first(columns - kLanes);
  }
  __mmask16 lane[2];
};

// The left operand of a tile: unit (row, i) at data + row * `row` + i * `step`, in elements.
template <class T>
struct Left {
  const T* data;
  int64_t row;
};

// Where the sums of a tile begin and go.
template <class Out>
struct Target {
  const float* start;  // null: zero
  int64_t start_stride;
  Out* out;
  int64_t out_stride;
};

// Asks for the lines of two blocks of rows, a few at a time, so that they come from memory while the blocks
// before them are multiplied.
class Ahead {
 public:
  struct Block {
    const void* begin;
    int64_t rows, row_bytes, stride_bytes;
    int64_t lines() const { return rows * ceil_div(row_bytes, kLine); }
  };
  Ahead(const Block& first, const Block& second) : now_(first), then_(second) {}
  void ask(int64_t lines) {
    for (; lines > 0 && now_.rows > 0; --lines) {
      _mm_prefetch(static_cast<const char*>(now_.begin) + at_, _MM_HINT_T1);
      at_ += kLine;
      if (at_ < now_.row_bytes) continue;
      at_ = 0;
      now_.begin = static_cast<const char*>(now_.begin) + now_.stride_bytes;
      if (--now_.rows == 0) now_ = std::exchange(then_, {});
    }
  }
  int64_t lines() const { return now_.lines() + then_.lines(); }

 private:
  static constexpr int64_t kLine = 64;
  Block now_, then_;
  int64_t at_ = 0;
};

// What a tile of packed operands fetches meanwhile, each time after kFetchUnits units.
struct Fetch {
  Ahead* blocks = nullptr;
  int64_t lines = 0;  // of them
};
constexpr int64_t kFetchUnits = 8;

template <class T>
inline __m512i broadcast(const T* unit) {
  int32_t bits;
  std::memcpy(&bits, unit, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline __m512 multiply(float, __m512i a, __m512i b, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}
inline __m512 multiply(BFloat16, __m512i a, __m512i b, __m512 sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

void store(const __m512 (&sum)[2], float* to, const Mask* mask) {
  for (int v = 0; v < 2; ++v) {
    if (mask == nullptr)
      _mm512_storeu_ps(to + v * kLanes, sum[v]);
    else
      _mm512_mask_storeu_ps(to + v * kLanes, mask->lane[v], sum[v]);
  }
}
void store(const __m512 (&sum)[2], BFloat16* to, const Mask* mask) {
  const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(sum[1], sum[0]));
  if (mask == nullptr)
    _mm512_storeu_si512(to, rounded);
  else
    _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(mask->lane[1]) << kLanes | mask->lane[0], rounded);
}

// R rows and 32 columns, or those of `mask` where there is one: `units` units of k, and half a unit more
// where `half`. kPacked: the rows of a lie side by side, a tile's worth of them for each unit, and there is
// something to fetch, besides the rows of the sums that follow the tile's.
template <class T, class Out, int R, bool kPacked, bool kMasked>
[[gnu::noinline]] void tile(int64_t units, bool half, Left<T> a, const T* b, const Target<Out>& target,
                            const Mask& columns, Fetch fetch) {
  constexpr int64_t kUnit = kDepth<T>, kStep = kPacked ? kRows * kUnit : kUnit;
  const int64_t stride = kPacked ? kUnit : a.row;
  const Mask* mask = kMasked ? &columns : nullptr;
  __m512 sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const float* from = target.start + r * target.start_stride + v * kLanes;
      sum[r][v] = target.start == nullptr ? _mm512_setzero_ps()
                  : kMasked               ? _mm512_maskz_loadu_ps(mask->lane[v], from)
                                          : _mm512_loadu_ps(from);
    }
  }
  const T *upper = a.data, *lower = a.data + 4 * stride;
  const Out* next = target.out + kRows * target.out_stride;
#pragma GCC unroll 1
  for (int64_t i = 0; i < units; ++i) {
    if (kPacked && i % kFetchUnits == 0) {
      fetch.blocks->ask(fetch.lines);
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(next + kLanes), _MM_HINT_T0);
      next += target.out_stride;
    }
    const __m512i right[2] = {_mm512_loadu_si512(b), _mm512_loadu_si512(b + kLanes * kUnit)};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i left = broadcast(r < 4 ? upper + r * stride : lower + (r - 4) * stride);
      sum[r][0] = multiply(T{}, left, right[0], sum[r][0]);
      sum[r][1] = multiply(T{}, left, right[1], sum[r][1]);
    }
    upper += kStep;
    lower += kStep;
    b += kColumns * kUnit;
  }
  if constexpr (kUnit == 2 && !kPacked) {
    if (half) {
      const __m512i right[2] = {_mm512_loadu_si512(b), _mm512_loadu_si512(b + kLanes * kUnit)};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i left = _mm512_set1_epi32(static_cast<int32_t>(upper[r * stride].bits));
        sum[r][0] = multiply(T{}, left, right[0], sum[r][0]);
        sum[r][1] = multiply(T{}, left, right[1], sum[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(sum[r], target.out + r * target.out_stride, mask);
}

// Up to kRows rows.
template <class T, bool kPacked, bool kMasked, class Out>
void tiles(int64_t rows, int64_t units, bool half, Left<T> a, const T* b, Target<Out> target,
           const Mask& mask, Fetch fetch) {
  if (rows == kRows) return tile<T, Out, kRows, kPacked, kMasked>(units, half, a, b, target, mask, fetch);
  const auto advance = [&](int64_t count) {
    a.data += count * (kPacked ? kDepth<T> : a.row);
    if (target.start != nullptr) target.start += count * target.start_stride;
    target.out += count * target.out_stride;
  };
  if (rows >= 4) {
    tile<T, Out, 4, kPacked, kMasked>(units, half, a, b, target, mask, fetch);
    advance(4);
  }
  for (int64_t r = rows >= 4 ? 4 : 0; r < rows; ++r) {
    tile<T, Out, 1, kPacked, kMasked>(units, half, a, b, target, mask, fetch);
    advance(1);
  }
}

// Up to kRows rows and kColumns columns.
template <class T, bool kPacked, class Out>
void tiles(int64_t rows, int64_t columns, int64_t units, bool half, Left<T> a, const T* b,
           const Target<Out>& target, Fetch fetch = {}) {
  const Mask mask(columns);
  if (columns >= kColumns)
    tiles<T, kPacked, false>(rows, units, half, a, b, target, mask, fetch);
  else
    tiles<T, kPacked, true>(rows, units, half, a, b, target, mask, fetch);
}

// Units of 32 columns of the rows from `row` on; rows that are not there, and columns behind `columns`, are
// zeros.
void load_units(const float* row, int64_t, bool, int64_t columns, __m512i (&unit)[2]) {
  const Mask mask(columns);
  unit[0] = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask.lane[0], row));
  unit[1] = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask.lane[1], row + kLanes));
}
void load_units(const BFloat16* row, int64_t stride, bool half, int64_t columns, __m512i (&unit)[2]) {
  const __mmask32 mask = columns >= kColumns ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
  const __m512i low = _mm512_maskz_loadu_epi16(mask, row),
                high = half ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, row + stride);
  const __m512i even = _mm512_unpacklo_epi16(low, high), odd = _mm512_unpackhi_epi16(low, high);
  // Each 128-bit lane now has 4 pairs; the first 16 columns are lanes 0 and 1 of both.
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  unit[0] = _mm512_permutex2var_epi64(even, first, odd);
  unit[1] = _mm512_permutex2var_epi64(even, second, odd);
}

// Panels of `width` columns of a [k, columns] block of rows; a panel has room for `units` units.
template <class T>
[[gnu::noinline]] void pack_rows_of(int64_t width, int64_t k, int64_t columns, const T* in, int64_t stride,
                                    T* out, int64_t units) {
  constexpr int64_t kUnit = kDepth<T>;
  constexpr int64_t kAhead = 8;  // rows: the first lines of a row are no surprise
  for (int64_t i = 0; i < k; i += kUnit)
    for (int64_t j = 0; j < columns; j += kColumns) {
      for (int64_t r = 0; r < kUnit; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(in + (i + r + kAhead) * stride + j), _MM_HINT_T0);
      }
      __m512i unit[2];
      load_units(in + i * stride + j, stride, i + kUnit > k, columns - j, unit);
      T* to = out + (j * units + i / kUnit * width) * kUnit;
      if (width == kColumns) {
        _mm512_store_si512(to, unit[0]);
        _mm512_store_si512(to + kLanes * kUnit, unit[1]);
        continue;
      }
      for (int v = 0; v < 2; ++v) {
        T* pair = to + 2 * v * kRows * units * kUnit;
        _mm256_store_si256(reinterpret_cast<__m256i*>(pair), _mm512_castsi512_si256(unit[v]));
        _mm256_store_si256(reinterpret_cast<__m256i*>(pair + kRows * units * kUnit),
                           _mm512_extracti64x4_epi64(unit[v], 1));
      }
    }
}

// One panel of the transpose of `rows` <= 32 rows of k elements.
template <class T>
void pack_transposed(int64_t k, int64_t rows, const T* in, int64_t stride, T* out) {
  constexpr int64_t kUnit = kDepth<T>;
  const Mask mask(rows);
  const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bytes =
      _mm512_mullo_epi32(order, _mm512_set1_epi32(static_cast<int32_t>(stride * int64_t{sizeof(T)})));
  for (int64_t i = 0; i + kUnit <= k; i += kUnit)
    for (int v = 0; v < 2; ++v) {
      if (mask.lane[v] == 0) {
        _mm512_store_si512(out + i * kColumns + v * kLanes * kUnit, _mm512_setzero_si512());
        continue;
      }
      const __m512i unit = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask.lane[v], bytes,
                                                       in + v * kLanes * stride + i, 1);
      _mm512_store_si512(out + i * kColumns + v * kLanes * kUnit, unit);
    }
  if (k % kUnit == 0) return;
  T* last = out + (k - 1) * kColumns;
  for (int64_t j = 0; j < kColumns; ++j) {
    last[2 * j] = j < rows ? in[j * stride + k - 1] : T{};
    last[2 * j + 1] = T{};
  }
}

}  // namespace
}  // namespace transxssm::cpu
