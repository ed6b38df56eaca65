// The forward kernel of the state-space scan; what it computes is said in kernels/ssd_scan.h.
//
// Each block carries a state [64, N] in fp32 registers through the steps of one segment: warp w has its rows
// 16 w.. and the same 16 columns of x and y. The score and weight tile of a step is shared: warp w forms its
// columns 16 w... Copies of the next step run beside the products of this one.
#pragma once

#include "kernels/cuda/ssd_decay.h"

namespace transxssm::cuda::ssd {

struct ForwardArgs {
  ScanArgs in;
  Heads<bf16> y;
  States entering;  // place: the segment
  States leaving;   // written by segments from first_leaving on; place: the segment
  int first_leaving;
  States between;  // written before every steps_between-th step; place: which of them
  int steps_between;
  float* carry;  // [B, segment, H tiles] product of the carries of a segment, or null
};

template <int N, bool kOutputs>
struct ForwardShared {
  Tile<kTokens, N> b[2];  // of this step and the next
  Tile<kTokens, kWidth> x[2];
  Decay decay;
  Frame<N> frame;
};
template <int N>
struct ForwardShared<N, true> : ForwardShared<N, false> {
  Tile<kTokens, N> c[2];
  Tile<kTokens, kTokens> weights;
};

// Rows 16 warp + g (and + 8) of a state, columns 8 j + 2 t (and + 1): state[j].
template <int N>
__device__ inline void read_rows(const States& from, int64_t offset, float (&state)[N / 8][4]) {
  const int row = 16 * warp_index() + lane_index() / 4, column = 2 * (lane_index() % 4);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float2 top = read_state<N>(from, offset, row, 8 * j + column);
    const float2 bottom = read_state<N>(from, offset, row + 8, 8 * j + column);
    state[j][0] = top.x, state[j][1] = top.y, state[j][2] = bottom.x, state[j][3] = bottom.y;
  }
}
template <int N>
__device__ inline void write_rows(const States& to, int64_t offset, const float (&state)[N / 8][4]) {
  const int lane = lane_index(), row = 16 * warp_index() + lane / 4, t = lane % 4;
  if (to.half) {
    bf16* data = static_cast<bf16*>(to.data) + offset;
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) {
      const uint32_t words[2][2] = {
          {pack_bf16(state[j][0], state[j][1]), pack_bf16(state[j + 1][0], state[j + 1][1])},
          {pack_bf16(state[j][2], state[j][3]), pack_bf16(state[j + 1][2], state[j + 1][3])}};
      store_16_bytes(data + (row + t / 2 * 8) * N + 8 * (j + t % 2), gather_unit(words));
    }
  } else {
    float* data = static_cast<float*>(to.data) + offset;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      *reinterpret_cast<float2*>(data + row * N + 8 * j + 2 * t) = make_float2(state[j][0], state[j][1]);
      *reinterpret_cast<float2*>(data + (row + 8) * N + 8 * j + 2 * t) =
          make_float2(state[j][2], state[j][3]);
    }
  }
}

// Into the frame of the step that follows.
template <int N>
__device__ inline void turn_rows(const Frame<N>& frame, float (&state)[N / 8][4]) {
#pragma unroll
  for (int j = 0; j < N / 16; ++j) {
    const int column = 8 * j + 2 * (lane_index() % 4);
    const float cos[2] = {frame.cos[column], frame.cos[column + 1]};
    const float sin[2] = {frame.sin[column], frame.sin[column + 1]};
#pragma unroll
    for (int c = 0; c < 4; ++c) rotate_pair(state[j][c], state[j + N / 16][c], cos[c % 2], -sin[c % 2]);
  }
}

// scores: columns 16 warp.. of C B^T, rows from the diagonal down; y: exp(g) C S^T, of the warp's columns.
template <int N>
__device__ inline void multiply_state(Tile<kTokens, N>& b, Tile<kTokens, N>& c, const Decay& decay,
                                      const float (&state)[N / 8][4], float (&scores)[4][2][4],
                                      float (&y)[4][2][4]) {
  const int warp = warp_index(), g = lane_index() / 4;
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
    uint32_t columns[4];
    load_right_transposed(b, warp, k, columns);
    const uint32_t entering[4] = {
        pack_bf16(state[2 * k][0], state[2 * k][1]), pack_bf16(state[2 * k + 1][0], state[2 * k + 1][1]),
        pack_bf16(state[2 * k][2], state[2 * k][3]), pack_bf16(state[2 * k + 1][2], state[2 * k + 1][3])};
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t rows[4];
      load_left(c, m, k, rows);
      multiply(y[m][0], y[m][1], rows, entering);
      if (m >= warp) multiply(scores[m][0], scores[m][1], rows, columns);
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 8; ++i) y[m][i / 4][i % 4] *= decay.into[16 * m + g + i % 4 / 2 * 8];
  }
}

// weights_ij = scores_ij exp(g_i - g_j) dt_j where i sees j, else 0.
__device__ inline void write_weights(const Decay& decay, const float (&scores)[4][2][4],
                                     Tile<kTokens, kTokens>& weights) {
  const int warp = warp_index(), g = lane_index() / 4, column = 16 * warp + 2 * (lane_index() % 4);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    if (m < warp) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * m + g + 8 * half, first = decay.first[i];
      const float g_i = decay.g[i];
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        float value[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = column + 8 * f + c;
          value[c] = scores[m][f][2 * half + c] * decay.dt[j] * Decay::between(i, first, g_i, j, decay.g[j]);
        }
        weights.pair(i, column + 8 * f) = pack_bf16(value[0], value[1]);
      }
    }
  }
}

// y += weights x; state = carry state + (out dt x)^T b.
template <int N, bool kOutputs>
__device__ inline void multiply_tokens(Tile<kTokens, N>& b, Tile<kTokens, kWidth>& x,
                                       Tile<kTokens, kTokens>* weights, const Decay& decay,
                                       float (&state)[N / 8][4], float (&y)[4][2][4]) {
  const int warp = warp_index(), t = lane_index() % 4;
  const float carry = decay.carry();
#pragma unroll
  for (int i = 0; i < N / 2; ++i) state[i / 4][i % 4] *= carry;
#pragma unroll 2
  for (int k = 0; k < kTokens / 16; ++k) {
    uint32_t rows[4];
    load_right(x, k, warp, rows);
    if constexpr (kOutputs) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        if (m < k) continue;
        uint32_t left[4];
        load_left(*weights, m, k, left);
        multiply(y[m][0], y[m][1], left, rows);
      }
    }
    // The transpose of x as a left operand is the same registers in another order.
    const float* w = decay.weight + 16 * k + 2 * t;
    const uint32_t weighted[4] = {scale_pair(rows[0], w[0], w[1]), scale_pair(rows[2], w[0], w[1]),
                                  scale_pair(rows[1], w[8], w[9]), scale_pair(rows[3], w[8], w[9])};
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      uint32_t columns[4];
      load_right(b, k, j, columns);
      multiply(state[2 * j], state[2 * j + 1], weighted, columns);
    }
  }
}

// y + d_skip x of the warp's columns, to rows of `stride` elements.
__device__ inline void write_outputs(Tile<kTokens, kWidth>& x, float skip, const float (&y)[4][2][4],
                                     bf16* to, int64_t stride, int length) {
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  int row = g + t / 2 * 8;
  to += row * stride + 16 * warp + t % 2 * 8;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t words[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        const float2 in = unpack_bf16(x.pair(16 * m + g + 8 * half, 16 * warp + 8 * f + 2 * t));
        words[half][f] = pack_bf16(y[m][f][2 * half] + skip * in.x, y[m][f][2 * half + 1] + skip * in.y);
      }
    }
    const uint4 unit = gather_unit(words);
    if (row < length) store_16_bytes(to, unit);
    row += 16, to += 16 * stride;
  }
}

}  // namespace transxssm::cuda::ssd
