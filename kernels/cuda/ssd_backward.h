// Products of the backward of the state-space scan; the derivation is in kernels/cpu/ssd_scan_backward.cc.
// With V = dY X^T, G = C B^T, L the decays, dG = V L dt, U = dG G (all of one head and step, C and B
// rotated):
//   dC = dG B + exp(g) (dY S)                    dB = dG^T C + exp(g_last - g) dt (X dS)
//   d(dt X) = (G L)^T dY + exp(g_last - g) (B dS^T)        dS_before = exp(g_last) dS + (exp(g) dY)^T C
//   dg = row sums of U - column sums of U + ..., both of the same U in fp32
// Warp w forms columns 16 w.. of the scores and of d(dt X), and the columns of dC and dB that it has of dS.
#pragma once

#include "kernels/cuda/ssd_state_gradient.h"

namespace transxssm::cuda::ssd {

template <int N>
struct BackwardShared {
  Tile<kTokens, N> b, c;
  Tile<kTokens, kWidth> x, dy;
  Tile<kWidth, N> state;
  Tile<kTokens, kTokens> weights, d_scores;  // G L and dG
  Decay decay;
  Frame<N> frame;
  float rows[kWarps][kTokens];     // shares of dg_i but for the next two
  float columns[kTokens];          // column sums of U
  float leaving[kWarps][kTokens];  // shares of exp(g_last - g_j) dt_j <X_j dS, B_j>
  float d_dt[kWarps][kTokens];     // shares of <X_j, d(dt X)_j>
  float through[kWarps];           // shares of <S, dS>
  float d_skip[kWarps];            // shares of <X, dY>, summed over the steps
  float dt_bias, a_log;            // sums over the steps, of warp 0
  // Read again in every step: addresses that depend on it would fill the registers of the whole loop.
  Place place;
  // Takes the place of the state once dC is formed.
  __device__ Tile<N, kWidth>& d_state() { return reinterpret_cast<Tile<N, kWidth>&>(state); }
};

// Starts copying a state into a tile; one in f32 is converted on the way.
template <int N>
__device__ inline void load_state(const States& from, int64_t offset, Tile<kWidth, N>& tile) {
  if (from.half) return load_tile(tile, static_cast<const bf16*>(from.data) + offset, N, kWidth);
  constexpr int kUnits = N / 8;
#pragma unroll 4
  for (int j = 0; j < kWidth * kUnits / kThreads; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * kThreads, row = i / kUnits, unit = i % kUnits;
    float values[8];
    load_vector(static_cast<const float*>(from.data) + offset + row * N + unit * 8, values);
    store_vector(tile.unit(row, unit), values);
  }
}

// Forms columns 16 warp.. of G and V, from the diagonal down; leaves G L and dG in shared memory, and the
// sums of the rows and columns of U without its diagonal, which does not decay.
template <int N>
__device__ inline void form_scores(BackwardShared<N>& shared) {
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  const Decay& decay = shared.decay;
  float scores[4][2][4] = {}, d_weights[4][2][4] = {};
#pragma unroll 2
  for (int k = 0; k < N / 16; ++k) {
    uint32_t right[4];
    load_right_transposed(shared.b, warp, k, right);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (m < warp) continue;
      uint32_t left[4];
      load_left(shared.c, m, k, left);
      multiply(scores[m][0], scores[m][1], left, right);
    }
  }
#pragma unroll 2
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t right[4];
    load_right_transposed(shared.x, warp, k, right);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (m < warp) continue;
      uint32_t left[4];
      load_left(shared.dy, m, k, left);
      multiply(d_weights[m][0], d_weights[m][1], left, right);
    }
  }
  const int column = 16 * warp + 2 * t;
  float columns[2][2] = {};
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * m + g + 8 * half, first = decay.first[i];
      const float g_i = decay.g[i];
      float row = 0;
      if (m >= warp) {
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          float weight[2], d_score[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int j = column + 8 * f + e;
            const float score = scores[m][f][2 * half + e];
            const float between = Decay::between(i, first, g_i, j, decay.g[j]);
            weight[e] = score * between;
            d_score[e] = d_weights[m][f][2 * half + e] * between * decay.dt[j];
            const float u = i == j ? 0.0f : d_score[e] * score;
            row += u;
            columns[f][e] += u;
          }
          shared.weights.pair(i, column + 8 * f) = pack_bf16(weight[0], weight[1]);
          shared.d_scores.pair(i, column + 8 * f) = pack_bf16(d_score[0], d_score[1]);
        }
      }
      row = quad_sum(row);
      if (t == 0) shared.rows[warp][i] = row;
    }
  }
#pragma unroll
  for (int f = 0; f < 2; ++f) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = columns[f][e];
#pragma unroll
      for (int mask = 4; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
      if (g == 0) shared.columns[column + 8 * f + e] = sum;
    }
  }
}

// Gradients of b or c, half a tile at a time since registers are short: rows 16 (2 half + m)...
template <int N>
using HalfGradient = float[2][N / 32][4];

// Row i of `gradient` times factor_i; its product with row i of `tile`, times factor_i too, goes to
// sums[i], or is added there.
template <int N, bool kAdd>
__device__ inline void scale_and_dot(Tile<kTokens, N>& tile, const float* factor, int half,
                                     HalfGradient<N>& gradient, float* sums) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = 32 * half + 16 * m + 8 * r + g;
      const float scale = factor[i];
      float sum = 0;
#pragma unroll
      for (int q = 0; q < N / 32; ++q) {
        float &x = gradient[m][q][2 * r], &y = gradient[m][q][2 * r + 1];
        x *= scale, y *= scale;
        sum += dot_pair(tile.pair(i, 8 * unit_of_warp<N>(q) + 2 * t), x, y);
      }
      sum = quad_sum(sum);
      if (t == 0) sums[i] = kAdd ? sums[i] + sum : sum;
    }
  }
}

// dC = exp(g) (dY S) + dG B. What goes through the entering state adds its share of dg to `rows`; returns, in
// the first half, this lane's share of <S, dS>.
template <int N>
__device__ inline float form_dc(BackwardShared<N>& shared, const StateGradient<N>& d_state, int half,
                                HalfGradient<N>& dc) {
  float through = 0;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      load_matrix_x4_transposed(right[q], warp_rows_first(shared.state, k, q));
      if (half > 0) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* d = d_state[q][2 * k + i % 2] + i / 2 * 2;
        through += dot_pair(right[q][i], d[0], d[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t left[4];
      load_left(shared.dy, 2 * half + m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(dc[m][2 * q], dc[m][2 * q + 1], left, right[q]);
    }
  }
  scale_and_dot<N, true>(shared.c, shared.decay.into, half, dc, shared.rows[warp_index()]);
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    if (k > 2 * half + 1) break;
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) load_matrix_x4_transposed(right[q], warp_rows_first(shared.b, k, q));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (2 * half + m < k) continue;
      uint32_t left[4];
      load_left(shared.d_scores, 2 * half + m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(dc[m][2 * q], dc[m][2 * q + 1], left, right[q]);
    }
  }
  return through;
}

// dB = exp(g_last - g) dt (X dS) + dG^T C. The warp's rows of dS^T come from shared memory, since packed into
// registers they would stay there beside the unpacked ones.
template <int N>
__device__ inline void form_db(BackwardShared<N>& shared, int half, HalfGradient<N>& db) {
  const int lane = lane_index();
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      const int row = 8 * unit_of_warp<N>(2 * q + lane / 16) + lane % 8;
      load_matrix_x4(right[q], shared.d_state().unit(row, 2 * k + lane / 8 % 2));
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t left[4];
      load_left(shared.x, 2 * half + m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(db[m][2 * q], db[m][2 * q + 1], left, right[q]);
    }
  }
  scale_and_dot<N, false>(shared.b, shared.decay.weight, half, db, shared.leaving[warp_index()]);
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    if (k < 2 * half) continue;
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) load_matrix_x4_transposed(right[q], warp_rows_first(shared.c, k, q));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (2 * half + m > k) continue;
      uint32_t left[4];
      load_left_transposed(shared.d_scores, 2 * half + m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(db[m][2 * q], db[m][2 * q + 1], left, right[q]);
    }
  }
}

// d(dt X) of columns 16 warp.. from dS^T in shared memory: exp(g_last - g) (B dS^T) + (G L)^T dY.
template <int N>
__device__ inline void form_dx(BackwardShared<N>& shared, float (&dx)[4][2][4]) {
  const int warp = warp_index(), g = lane_index() / 4;
#pragma unroll 2
  for (int k = 0; k < N / 16; ++k) {
    uint32_t right[4];
    load_right(shared.d_state(), k, warp, right);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t left[4];
      load_left(shared.b, m, k, left);
      multiply(dx[m][0], dx[m][1], left, right);
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 8; ++i) dx[m][i / 4][i % 4] *= shared.decay.out[16 * m + g + i % 4 / 2 * 8];
  }
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    uint32_t right[4];
    load_right(shared.dy, k, warp, right);
#pragma unroll
    for (int m = 0; m <= k; ++m) {
      uint32_t left[4];
      load_left_transposed(shared.weights, m, k, left);
      multiply(dx[m][0], dx[m][1], left, right);
    }
  }
}

}  // namespace transxssm::cuda::ssd
