// Tiles of the state-space scan in shared memory, and their operands for mma.sync.
//
// A block of 4 warps takes one head (64 columns of its head dim) through its tokens, 64 at a time. Fragments
// of a lane, with g = lane / 4 and t = lane % 4:
//   sums 16x8    d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   left 16x16   a: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)      pairs of columns
//   right 16x8   b: (2t.., g) (2t+8.., g)                                pairs of rows
// so that sums over columns become a left operand, and sums with rows and columns exchanged a right one,
// without leaving their lane.
#pragma once

#include "kernels/cuda/gpu.h"

namespace transxssm::cuda::ssd {

inline constexpr int kTokens = 64;  // rows of a tile: tokens taken at a time
inline constexpr int kWidth = 64;   // columns of the head dim a block takes
inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarp;

__device__ inline int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
__device__ inline int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

// A matrix in shared memory. Units of 16 bytes change places within their row so that the 8 rows an ldmatrix
// reads lie in different banks.
template <int Rows, int Columns>
struct Tile {
  bf16 data[Rows * Columns];
  __device__ bf16* unit(int row, int index) { return data + row * Columns + ((index ^ (row & 7)) * 8); }
  // Two columns, the first of them even.
  __device__ uint32_t& pair(int row, int column) {
    return *reinterpret_cast<uint32_t*>(unit(row, column / 8) + column % 8);
  }
};

// Starts copying `length` rows of `stride` elements into a tile, with zeros below.
template <int Rows, int Columns>
__device__ inline void load_tile(Tile<Rows, Columns>& tile, const bf16* from, int64_t stride, int length) {
  constexpr int kUnits = Columns / 8, kRows = kThreads / kUnits;  // rows at a time
  static_assert(kRows % 8 == 0);                                  // a unit keeps its place in its row
  int row = static_cast<int>(threadIdx.x) / kUnits;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
  from += row * stride + unit * 8;
  bf16* to = tile.unit(row, unit);
#pragma unroll
  for (int i = 0; i < Rows / kRows; ++i) {
    copy_async_or_zero(to, from, row < length);
    row += kRows, to += kRows * Columns, from += kRows * stride;
  }
}

// Addresses for ldmatrix: of 16 rows and a pair of units, those a lane names differ from one pair to the next
// by constants only, which keeps them out of registers. Lanes 0 to 15 name the first unit of rows 0 to 15,
// the others the second.
template <int Rows, int Columns>
__device__ inline const bf16* rows_first(Tile<Rows, Columns>& tile, int block, int pair) {
  const int lane = lane_index(), own = lane % 16 * Columns + (lane / 16 ^ lane % 8) * 8;
  return tile.data + (own ^ pair % 4 * 16) + pair / 4 * 64 + block * 16 * Columns;
}
// Lanes 0 to 7 name the first unit of rows 0 to 7, 8 to 15 the second, the others those of rows 8 to 15.
template <int Rows, int Columns>
__device__ inline const bf16* units_first(Tile<Rows, Columns>& tile, int block, int pair) {
  const int lane = lane_index();
  const int own = (lane / 16 * 8 + lane % 8) * Columns + (lane / 8 % 2 ^ lane % 8) * 8;
  return tile.data + (own ^ pair % 4 * 16) + pair / 4 * 64 + block * 16 * Columns;
}

// Left operand: rows 16 m.. and columns 16 k.. of a tile.
template <int Rows, int Columns>
__device__ inline void load_left(Tile<Rows, Columns>& tile, int m, int k, uint32_t (&a)[4]) {
  load_matrix_x4(a, rows_first(tile, m, k));
}
// Left operand: transpose of rows 16 k.. and columns 16 m.. of a tile.
template <int Rows, int Columns>
__device__ inline void load_left_transposed(Tile<Rows, Columns>& tile, int m, int k, uint32_t (&a)[4]) {
  load_matrix_x4_transposed(a, units_first(tile, k, m));
}
// Two right operands side by side: rows 16 k.. and columns 16 n.. of a tile.
template <int Rows, int Columns>
__device__ inline void load_right(Tile<Rows, Columns>& tile, int k, int n, uint32_t (&b)[4]) {
  load_matrix_x4_transposed(b, rows_first(tile, k, n));
}
// Two right operands side by side: transpose of rows 16 n.. and columns 16 k.. of a tile.
template <int Rows, int Columns>
__device__ inline void load_right_transposed(Tile<Rows, Columns>& tile, int n, int k, uint32_t (&b)[4]) {
  load_matrix_x4(b, units_first(tile, n, k));
}
// d0 | d1 += a (b | b'): two right operands as the loads above leave them.
__device__ inline void multiply(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                const uint32_t (&b)[4]) {
  const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  mma_16x8x16(d0, a, b0);
  mma_16x8x16(d1, a, b1);
}

__device__ inline uint32_t scale_pair(uint32_t pair, float low, float high) {
  const float2 v = unpack_bf16(pair);
  return pack_bf16(v.x * low, v.y * high);
}
__device__ inline float dot_pair(uint32_t pair, float x, float y) {
  const float2 v = unpack_bf16(pair);
  return v.x * x + v.y * y;
}
// Over the four lanes that share a row of sums, in every one of them.
__device__ inline float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// The four lanes of a quad hold two rows (g, g+8) of two units of 8 columns, a pair of columns each:
// words[row][unit]. Lane t gets the 16 bytes of row t / 2, unit t % 2: whole 32-byte sectors for a store.
__device__ inline uint4 gather_unit(const uint32_t (&words)[2][2]) {
  const bool second_row = (threadIdx.x & 2) != 0, second_unit = (threadIdx.x & 1) != 0;
  uint32_t low[2], high[2];  // [unit] from lanes 0 and 1, from lanes 2 and 3
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const uint32_t own = second_row ? words[1][u] : words[0][u];
    const uint32_t other = shuffle_xor(second_row ? words[0][u] : words[1][u], 2);
    low[u] = second_row ? other : own;
    high[u] = second_row ? own : other;
  }
  const uint32_t own_low = second_unit ? low[1] : low[0], own_high = second_unit ? high[1] : high[0];
  const uint32_t other_low = shuffle_xor(second_unit ? low[0] : low[1], 1);
  const uint32_t other_high = shuffle_xor(second_unit ? high[0] : high[1], 1);
  return second_unit ? make_uint4(other_low, own_low, other_high, own_high)
                     : make_uint4(own_low, other_low, own_high, other_high);
}

// x, y <- their rotation by the angle of cos and sin; by its negative with -sin.
__device__ inline void rotate_pair(float& x, float& y, float cos, float sin) {
  const float rotated = x * cos - y * sin;
  y = x * sin + y * cos;
  x = rotated;
}

}  // namespace transxssm::cuda::ssd
