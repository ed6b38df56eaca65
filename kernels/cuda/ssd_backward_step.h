// The ends of a step of the backward scan: gradients on their way out, and those of dt and of the decays.
#pragma once

#include "kernels/cuda/ssd_backward.h"

namespace transxssm::cuda::ssd {

// Gradient of b or c: rows [B,T,G,N] where a group has one slice, else of every slice [B,T,slices,N], which
// are summed afterwards.
struct GroupGradient {
  Heads<bf16> rows;
  float* slices;  // or null
};

struct BackwardArgs {
  ScanArgs in;
  Heads<const bf16> dy;
  Heads<bf16> dx;
  GroupGradient db, dc;
  States entering;    // S; place: the step
  States leaving;     // dS; place: the segment
  States d_initial;   // written by the first segment
  Heads<float> du;    // of every slice
  float* parameters;  // [B, segments, slices, 3] sums for dt_bias, a_log, d_skip; null in the states kernel
  float* carry;       // [B, segments, slices], of the states kernel
};

// R(-i) of the warp's columns of row i, times scale_of_c for c, to where they belong.
template <int N>
__device__ inline void write_rotated(const ScanArgs& args, const Place& place, const Step& step, bool of_c,
                                     int half, HalfGradient<N>& gradient, const GroupGradient& to) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int first = 32 * half + 16 * m + g;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = first + 8 * r;
      if (i >= step.length) continue;
      const float scale = of_c ? scale_of_c(args, place.row, step.begin + i) : 1.0f;
#pragma unroll
      for (int q = 0; q < N / 64; ++q) {
        float2 cos = make_float2(1.0f, 1.0f), sin = make_float2(0.0f, 0.0f);
        if (args.cos != nullptr) {
          const int at = i * (N / 2) + 8 * unit_of_warp<N>(q) + 2 * t;
          cos = *reinterpret_cast<const float2*>(args.cos + at);
          sin = *reinterpret_cast<const float2*>(args.sin + at);
        }
        float(&low)[4] = gradient[m][q], (&high)[4] = gradient[m][q + N / 64];
        rotate_pair(low[2 * r], high[2 * r], scale * cos.x, -scale * sin.x);
        rotate_pair(low[2 * r + 1], high[2 * r + 1], scale * cos.y, -scale * sin.y);
        if (to.slices == nullptr) continue;
        const int64_t token = int64_t{place.row} * args.tokens + step.begin + i;
        float* slice = to.slices + (token * gridDim.x + place.slice) * N + 8 * unit_of_warp<N>(q) + 2 * t;
        *reinterpret_cast<float2*>(slice) = make_float2(low[2 * r], low[2 * r + 1]);
        *reinterpret_cast<float2*>(slice + N / 2) = make_float2(high[2 * r], high[2 * r + 1]);
      }
    }
    if (to.slices != nullptr) continue;
    const int i = first + t / 2 * 8;
    bf16* row = to.rows.at(place.row, step.begin + i, place.group);
#pragma unroll
    for (int q = 0; q < N / 64; ++q) {
      const float(&a)[4] = gradient[m][2 * q], (&b)[4] = gradient[m][2 * q + 1];
      const uint32_t words[2][2] = {{pack_bf16(a[0], a[1]), pack_bf16(b[0], b[1])},
                                    {pack_bf16(a[2], a[3]), pack_bf16(b[2], b[3])}};
      const uint4 unit = gather_unit(words);
      if (i < step.length) store_16_bytes(row + 8 * unit_of_warp<N>(2 * q + t % 2), unit);
    }
  }
}

// dX = dt d(dt X) + d_skip dY of the warp's columns; leaves <X, d(dt X)> of them in shared memory and returns
// this lane's share of <X, dY>.
template <int N>
__device__ inline float write_dx(BackwardShared<N>& shared, float skip, const float (&dx)[4][2][4], bf16* to,
                                 int64_t stride, int length) {
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  int row = g + t / 2 * 8;
  to += row * stride + 16 * warp + t % 2 * 8;
  float with_dy = 0;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t words[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * m + g + 8 * half;
      const float dt = shared.decay.dt[i];
      float sum = 0;
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        const int column = 16 * warp + 8 * f + 2 * t;
        const float2 dy = unpack_bf16(shared.dy.pair(i, column));
        const float d0 = dx[m][f][2 * half], d1 = dx[m][f][2 * half + 1];
        sum += dot_pair(shared.x.pair(i, column), d0, d1);
        with_dy += dot_pair(shared.x.pair(i, column), dy.x, dy.y);
        words[half][f] = pack_bf16(dt * d0 + skip * dy.x, dt * d1 + skip * dy.y);
      }
      sum = quad_sum(sum);
      if (t == 0) shared.d_dt[warp][i] = sum;
    }
    const uint4 unit = gather_unit(words);
    if (row < length) store_16_bytes(to, unit);
    row += 16, to += 16 * stride;
  }
  return with_dy;
}

// By warp 0: from the shares of all warps to the gradient of u, of tokens 2 lane and 2 lane + 1, and what
// they add to those of dt_bias and a_log. dg_t counts for a dt of every token up to t in the same document,
// but its first, which nothing decays into.
template <int N>
__device__ inline void finish_tokens(BackwardShared<N>& shared, float a, const Step& step, bool first_step,
                                     float* du, int64_t du_stride) {
  const int lane = lane_index();
  float dg[2], leaving[2], d_dt[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int i = 2 * lane + c;
    dg[c] = -shared.columns[i], leaving[c] = 0, d_dt[c] = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      dg[c] += shared.rows[w][i];
      leaving[c] += shared.leaving[w][i];
      d_dt[c] += shared.d_dt[w][i];
    }
    if (i == step.length - 1) leaving[c] = 0;  // leaves without decay; the others may be far smaller
    dg[c] -= leaving[c];
  }
  const float left = warp_sum(leaving[0] + leaving[1]);
  if (lane == kWarp - 1) {
    float through = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) through += shared.through[w];
    dg[1] += left + shared.decay.carry() * through;
  }
  const bool starts[2] = {shared.decay.first[2 * lane] == 2 * lane,
                          shared.decay.first[2 * lane + 1] == 2 * lane + 1};
  int next_starts = shuffle_down(starts[0] ? 1 : 0, 1);
  if (lane == kWarp - 1) next_starts = 0;
  float sum = dg[0] + (starts[1] ? 0.0f : dg[1]);
  int closed = starts[1] || next_starts ? 1 : 0;  // a document ends in what the sum covers
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float other = shuffle_down(sum, distance);
    const int other_closed = shuffle_down(closed, distance);
    if (lane + distance < kWarp && !closed) sum += other, closed = other_closed;
  }
  const float after = shuffle_down(sum, 1);
  const float d_decay[2] = {starts[0] ? 0.0f : sum,
                            starts[1] ? 0.0f : dg[1] + (next_starts || lane == kWarp - 1 ? 0.0f : after)};
  float dt_bias = 0, a_log = 0;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int i = 2 * lane + c;
    if (i >= step.length) continue;
    const float d = (d_dt[c] + a * d_decay[c]) * shared.decay.slope[i];
    du[i * du_stride] = d;
    dt_bias += d;
    a_log += a * shared.decay.dt[i] * d_decay[c];
  }
  dt_bias = warp_sum(dt_bias);
  a_log = warp_sum(a_log);
  if (lane != 0) return;
  shared.dt_bias = first_step ? dt_bias : shared.dt_bias + dt_bias;
  shared.a_log = first_step ? a_log : shared.a_log + a_log;
}

}  // namespace transxssm::cuda::ssd
