// Tiles of attention: from global to shared memory, from there to the operands of mma.sync, and back.
//
// Each warp of a block owns 16 M rows of one side of the scores (queries, or keys in the pass that
// forms dk and dv) and walks over the other side, whose tiles all warps share. Its rows' products stay in
// registers from one product to the next: the layout of a product's result is that of a left operand.
//   fragments of a lane, g = lane / 4, t = lane % 4:
//   result 16x8:  {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}
#pragma once

#include "kernels/cuda/gpu.h"

namespace transxssm::cuda {

// Where 16-byte piece `piece` of row `row` lies in a tile of P columns, in elements. The pieces of 8 rows
// that one ldmatrix reads lie in different banks.
template <int P>
__device__ inline int tile_at(int row, int piece) {
  constexpr int kPieces = P / 8;
  constexpr int kRowsPerLine = kPieces < 8 ? 8 / kPieces : 1;
  constexpr int kMask = kPieces < 8 ? kPieces - 1 : 7;
  return row * P + ((piece ^ ((row / kRowsPerLine) & kMask)) * 8);
}

// kRows rows of P elements into a tile by kThreads threads, the rows from `valid` on as zeros.
template <int kThreads, int kRows, int P>
__device__ inline void load_tile(bf16* tile, const bf16* global, int64_t stride, int valid) {
  constexpr int kPieces = P / 8, kStep = kThreads / kPieces;
  static_assert(kRows % kStep == 0 && kStep % 8 == 0);  // a step keeps the piece's place in its row
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  int row = static_cast<int>(threadIdx.x) / kPieces;
  const bf16* from = global + row * stride + piece * 8;
  bf16* to = tile + tile_at<P>(row, piece);
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    copy_async_or_zero(to, from, row < valid);
    row += kStep, from += kStep * stride, to += kStep * P;
  }
}

// Left operand of products: 16 M rows of a tile, held in registers.
template <int P, int M>
struct RowFragments {
  __device__ void load(const bf16* tile, int first_row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int k = 0; k < P / 16; ++k)
        load_matrix_x4(values[m][k], tile + tile_at<P>(first_row + m * 16 + lane % 16, k * 2 + lane / 16));
  }
  __device__ void get(uint32_t (&a)[4], int m, int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = values[m][k][i];
  }
  uint32_t values[M][P / 16][4];
};

// The same, read from the tile for every product: where registers are short.
template <int P, int M>
struct RowsInMemory {
  __device__ void load(const bf16* of_tile, int first_row) {
    tile = of_tile;
    row = first_row + static_cast<int>(threadIdx.x) % 16;
  }
  __device__ void get(uint32_t (&a)[4], int m, int k) const {
    load_matrix_x4(a, tile + tile_at<P>(row + m * 16, k * 2 + static_cast<int>(threadIdx.x) % kWarp / 16));
  }
  const bf16* tile;
  int row;
};

// scores [16 M, 8 N] = rows columns^T: `columns` are rows first .. first + 8 N of a tile. N is even.
template <int P, int M, int N, class Rows>
__device__ inline void multiply(float (&scores)[M][N][4], const Rows& rows, const bf16* tile, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0;
#pragma unroll
  for (int k = 0; k < P / 16; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) rows.get(a[m], m, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      const int row = first + n * 8 + lane / 16 * 8 + lane % 8;
      load_matrix_x4(b, tile + tile_at<P>(row, k * 2 + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_16x8x16(scores[m][n], a[m], {b[0], b[1]});
        mma_16x8x16(scores[m][n + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

// sums [16 M, P] += weights [16 M, 8 N] columns, with the weights rounded to bf16; `columns` as above.
template <int P, int M, int N>
__device__ inline void accumulate(float (&sums)[M][P / 8][4], const float (&weights)[M][N][4],
                                  const bf16* tile, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = weights[m][2 * k + i / 2];
        a[m][i] = pack_bf16(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
      }
#pragma unroll
    for (int n = 0; n < P / 8; n += 2) {
      uint32_t b[4];
      load_matrix_x4_transposed(b, tile + tile_at<P>(first + k * 16 + lane % 16, n + lane / 16));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_16x8x16(sums[m][n], a[m], {b[0], b[1]});
        mma_16x8x16(sums[m][n + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

template <int M, int N>
__device__ inline void clear(float (&sums)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
}

template <int M, int N>
__device__ inline void scale_all(float (&sums)[M][N][4], float factor) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] *= factor;
}

// Rows first_row .. first_row + 16 M of a warp's sums, rounded to bf16, to global memory: through the tile's
// rows of the same numbers, which no other warp uses any more, so that whole lines are written. `global` is
// row 0 of the tile; rows from `valid` on are not written.
template <int P, int M>
__device__ inline void store_rows(const float (&sums)[M][P / 8][4], bf16* tile, int first_row, bf16* global,
                                  int64_t stride, int valid) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  sync_warp();  // other lanes' loads of these rows are done
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < P / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + m * 16 + half * 8 + lane / 4;
        *reinterpret_cast<uint32_t*>(tile + tile_at<P>(row, n) + lane % 4 * 2) =
            pack_bf16(sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
      }
  sync_warp();
  constexpr int kPieces = P / 8, kStep = kWarp / kPieces;
  const int piece = lane % kPieces, end = min(first_row + 16 * M, valid);
#pragma unroll 1
  for (int row = first_row + lane / kPieces; row < end; row += kStep)
    store_16_bytes(global + row * stride + piece * 8, load_16_bytes(tile + tile_at<P>(row, piece)));
}

}  // namespace transxssm::cuda
