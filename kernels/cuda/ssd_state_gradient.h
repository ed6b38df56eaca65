// The gradient dS of the state in the backward scan: fp32 in registers from step to step.
//
// Warp w owns, of N columns, the two halves that turn with each other: N / 32 units of 8 columns. It keeps
// the transpose of its part of dS, so that dS is a right operand of products whose rows are tokens.
#pragma once

#include "kernels/cuda/ssd_decay.h"

namespace transxssm::cuda::ssd {

// Where unit q of a warp's columns begins, in units.
template <int N>
__device__ inline int unit_of_warp(int q) {
  constexpr int kHalf = N / 64;  // units of a warp in either half
  return (q < kHalf ? 0 : N / 16 - kHalf) + warp_index() * kHalf + q;
}

// Addresses for ldmatrix of 16 rows and the warp's units 2 q and 2 q + 1: rows_first and units_first.
template <int N>
__device__ inline const bf16* warp_rows_first(Tile<64, N>& tile, int block, int q) {
  if constexpr (N == 128) return rows_first(tile, block, warp_index() + 4 * q);
  return tile.unit(16 * block + lane_index() % 16, warp_index() + lane_index() / 16 * 4);
}
template <int N>
__device__ inline const bf16* warp_units_first(Tile<64, N>& tile, int block, int q) {
  const int lane = lane_index();
  if constexpr (N == 128) return units_first(tile, block, warp_index() + 4 * q);
  return tile.unit(16 * block + lane / 16 * 8 + lane % 8, warp_index() + lane / 8 % 2 * 4);
}

// [q][p][..]: rows 8 unit_of_warp(2 q) + g and 8 unit_of_warp(2 q + 1) + g of dS^T, columns 8 p + 2 t (+ 1).
template <int N>
using StateGradient = float[N / 64][kWidth / 8][4];

// For the gradients of states alone.
template <int N>
struct BackwardStatesShared {
  Tile<kTokens, N> c[2];  // of this step and the next
  Tile<kTokens, kWidth> dy[2];
  Decay decay;
  Frame<N> frame;
};

// dS read and written as [P,N].
template <int N>
__device__ inline void read_gradient(const States& from, int64_t offset, StateGradient<N>& d_state) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const float* data = static_cast<const float*>(from.data);
#pragma unroll
  for (int q = 0; q < N / 64; ++q) {
#pragma unroll
    for (int p = 0; p < kWidth / 8; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t at = offset + (8 * p + 2 * t + i % 2) * N + 8 * unit_of_warp<N>(2 * q + i / 2) + g;
        d_state[q][p][i] = data == nullptr ? 0.0f : data[at];
      }
    }
  }
}
template <int N>
__device__ inline void write_gradient(const States& to, int64_t offset, const StateGradient<N>& d_state) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  float* data = static_cast<float*>(to.data);
#pragma unroll
  for (int q = 0; q < N / 64; ++q) {
#pragma unroll
    for (int p = 0; p < kWidth / 8; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        data[offset + (8 * p + 2 * t + i % 2) * N + 8 * unit_of_warp<N>(2 * q + i / 2) + g] =
            d_state[q][p][i];
    }
  }
}

// dS^T as a tile.
template <int N>
__device__ inline void write_transposed(const StateGradient<N>& d_state, Tile<N, kWidth>& tile) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int q = 0; q < N / 64; ++q) {
#pragma unroll
    for (int p = 0; p < kWidth / 8; ++p) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        tile.pair(8 * unit_of_warp<N>(2 * q + i) + g, 8 * p + 2 * t) =
            pack_bf16(d_state[q][p][2 * i], d_state[q][p][2 * i + 1]);
    }
  }
}

// From the frame of the step that follows into that of this one.
template <int N>
__device__ inline void turn_gradient(const Frame<N>& frame, StateGradient<N>& d_state) {
  const int g = lane_index() / 4;
#pragma unroll
  for (int p = 0; p < kWidth / 8; ++p) {
    if constexpr (N == 64) {
      const int row = 8 * unit_of_warp<N>(0) + g;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        rotate_pair(d_state[0][p][i], d_state[0][p][2 + i], frame.cos[row], frame.sin[row]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * unit_of_warp<N>(i / 2) + g;
        rotate_pair(d_state[0][p][i], d_state[1][p][i], frame.cos[row], frame.sin[row]);
      }
    }
  }
}

// dS_before = carry dS + (exp(g) dY)^T C.
template <int N>
__device__ inline void add_outputs(Tile<kTokens, N>& c, Tile<kTokens, kWidth>& dy, const Decay& decay,
                                   StateGradient<N>& d_state) {
  const int t = lane_index() % 4;
  const float carry = decay.carry();
#pragma unroll
  for (int q = 0; q < N / 64; ++q) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) d_state[q][i / 4][i % 4] *= carry;
  }
#pragma unroll 2
  for (int k = 0; k < kTokens / 16; ++k) {
    const float* into = decay.into + 16 * k + 2 * t;
    uint32_t left[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      load_matrix_x4_transposed(left[q], warp_units_first(c, k, q));
#pragma unroll
      for (int i = 0; i < 4; ++i) left[q][i] = scale_pair(left[q][i], into[i / 2 * 8], into[i / 2 * 8 + 1]);
    }
#pragma unroll
    for (int p = 0; p < kWidth / 16; ++p) {
      uint32_t right[4];
      load_right(dy, k, p, right);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(d_state[q][2 * p], d_state[q][2 * p + 1], left[q], right);
    }
  }
}

}  // namespace transxssm::cuda::ssd
