// Products of the backward of the state-space scan; the derivation is in kernels/cpu/ssd_scan_backward.cc.
// With V = dY X^T, G = C B^T, L the decays, dG = V L dt, U = dG G (all of one head and step, C and B
// rotated):
//   dC = dG B + exp(g) (dY S)                    dB = dG^T C + exp(g_last - g) dt (X dS)
//   d(dt X) = (G L)^T dY + exp(g_last - g) (B dS^T)        dS_before = exp(g_last) dS + (exp(g) dY)^T C
//   dg = row sums of U - column sums of U + ..., both of the same U in fp32
//
// Warp w owns, of N columns, the two halves that turn with each other: NT = N / 32 units of 8 columns, those
// of dC, dB and of the gradient dS of the state, whose transpose [NT 8, 64] it keeps in fp32 registers: then
// dS is a right operand without leaving its lane. Of scores it owns columns 16 w.., of d(dt X) columns 16
// w...
#pragma once

#include "kernels/cuda/ssd_decay.h"

namespace transxssm::cuda::ssd {

// Where unit q of a warp's columns begins, in units.
template <int N>
__device__ inline int unit_of_warp(int q) {
  constexpr int kHalf = N / 64;  // units of a warp in either half
  return (q < kHalf ? 0 : N / 16 - kHalf) + warp_index() * kHalf + q;
}

// [q][p][..]: rows 8 unit_of_warp(2 q) + g and 8 unit_of_warp(2 q + 1) + g of dS^T, columns 8 p + 2 t (+ 1).
template <int N>
using StateGradient = float[N / 64][kWidth / 8][4];

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
  float sums[kWarps];              // shares of <S, dS>
  float skips[kWarps];             // shares of <X, dY>
  // Takes the place of the state once dY S is formed.
  __device__ Tile<N, kWidth>& d_state() { return reinterpret_cast<Tile<N, kWidth>&>(state); }
};

// For the gradients of states alone.
template <int N>
struct BackwardStatesShared {
  Tile<kTokens, N> c[2];  // of this step and the next
  Tile<kTokens, kWidth> dy[2];
  Decay decay;
  Frame<N> frame;
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
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    const float* into = decay.into + 16 * k + 2 * t;
    uint32_t left[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      load_left_transposed(c, unit_of_warp<N>(2 * q), unit_of_warp<N>(2 * q + 1), k, left[q]);
#pragma unroll
      for (int i = 0; i < 4; ++i) left[q][i] = scale_pair(left[q][i], into[i / 2 * 8], into[i / 2 * 8 + 1]);
    }
#pragma unroll
    for (int p = 0; p < kWidth / 16; ++p) {
      uint32_t right[4];
      load_right(dy, k, 2 * p, 2 * p + 1, right);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(d_state[q][2 * p], d_state[q][2 * p + 1], left[q], right);
    }
  }
}

// Forms columns 16 warp.. of G and V, from the diagonal down; leaves G L and dG in shared memory, and the
// sums of the rows and columns of U without its diagonal, which does not decay.
template <int N>
__device__ inline void form_scores(BackwardShared<N>& shared) {
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  const Decay& decay = shared.decay;
  float scores[4][2][4] = {}, d_weights[4][2][4] = {};
#pragma unroll
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
#pragma unroll
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

// Row i of `gradient` times factor_i; its product with row i of `tile`, times factor_i too, goes to
// sums[i], or is added there.
template <int N, bool kAdd>
__device__ inline void scale_and_dot(Tile<kTokens, N>& tile, const float* factor,
                                     float (&gradient)[4][N / 32][4], float* sums) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * m + g + 8 * half;
      const float scale = factor[i];
      float sum = 0;
#pragma unroll
      for (int q = 0; q < N / 32; ++q) {
        float &x = gradient[m][q][2 * half], &y = gradient[m][q][2 * half + 1];
        x *= scale, y *= scale;
        sum += dot_pair(tile.pair(i, 8 * unit_of_warp<N>(q) + 2 * t), x, y);
      }
      sum = quad_sum(sum);
      if (t == 0) sums[i] = kAdd ? sums[i] + sum : sum;
    }
  }
}

// exp(g) (dY S): the part of dC that goes through the entering state. Its share of dg is added to `rows`;
// returns this lane's share of <S, dS>.
template <int N>
__device__ inline float enter_state(BackwardShared<N>& shared, const StateGradient<N>& d_state,
                                    float (&dc)[4][N / 32][4]) {
  float dot = 0;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      load_right(shared.state, k, unit_of_warp<N>(2 * q), unit_of_warp<N>(2 * q + 1), right[q]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* d = d_state[q][2 * k + i % 2] + i / 2 * 2;
        dot += dot_pair(right[q][i], d[0], d[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t left[4];
      load_left(shared.dy, m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(dc[m][2 * q], dc[m][2 * q + 1], left, right[q]);
    }
  }
  scale_and_dot<N, true>(shared.c, shared.decay.into, dc, shared.rows[warp_index()]);
  return dot;
}

// dC += dG B.
template <int N>
__device__ inline void add_scores_to_c(BackwardShared<N>& shared, float (&dc)[4][N / 32][4]) {
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q)
      load_right(shared.b, k, unit_of_warp<N>(2 * q), unit_of_warp<N>(2 * q + 1), right[q]);
#pragma unroll
    for (int m = k; m < 4; ++m) {
      uint32_t left[4];
      load_left(shared.d_scores, m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(dc[m][2 * q], dc[m][2 * q + 1], left, right[q]);
    }
  }
}

// dB = exp(g_last - g) dt (X dS) + dG^T C.
template <int N>
__device__ inline void form_db(BackwardShared<N>& shared, const StateGradient<N>& d_state,
                               float (&db)[4][N / 32][4]) {
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* d = d_state[q][2 * k + i % 2] + i / 2 * 2;
        right[q][i] = pack_bf16(d[0], d[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t left[4];
      load_left(shared.x, m, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(db[m][2 * q], db[m][2 * q + 1], left, right[q]);
    }
  }
  scale_and_dot<N, false>(shared.b, shared.decay.weight, db, shared.leaving[warp_index()]);
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    uint32_t right[N / 64][4];
#pragma unroll
    for (int q = 0; q < N / 64; ++q)
      load_right(shared.c, k, unit_of_warp<N>(2 * q), unit_of_warp<N>(2 * q + 1), right[q]);
#pragma unroll
    for (int m = 0; m <= k; ++m) {
      uint32_t left[4];
      load_left_transposed(shared.d_scores, 2 * m, 2 * m + 1, k, left);
#pragma unroll
      for (int q = 0; q < N / 64; ++q) multiply(db[m][2 * q], db[m][2 * q + 1], left, right[q]);
    }
  }
}

// d(dt X) of columns 16 warp.. from dS^T in shared memory: exp(g_last - g) (B dS^T) + (G L)^T dY.
template <int N>
__device__ inline void form_dx(BackwardShared<N>& shared, float (&dx)[4][2][4]) {
  const int warp = warp_index(), g = lane_index() / 4;
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
    uint32_t right[4];
    load_right(shared.d_state(), k, 2 * warp, 2 * warp + 1, right);
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
    load_right(shared.dy, k, 2 * warp, 2 * warp + 1, right);
#pragma unroll
    for (int m = 0; m <= k; ++m) {
      uint32_t left[4];
      load_left_transposed(shared.weights, 2 * m, 2 * m + 1, k, left);
      multiply(dx[m][0], dx[m][1], left, right);
    }
  }
}

}  // namespace transxssm::cuda::ssd
