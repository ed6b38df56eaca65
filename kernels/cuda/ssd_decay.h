// Decays inside a step of the scan. Warp 0 forms them, two tokens a lane; every warp reads them.
#pragma once

#include "kernels/cuda/ssd_shapes.h"

namespace transxssm::cuda::ssd {

inline constexpr float kSoftplusThreshold = 20.0f;  // softplus(v) = v beyond it
inline constexpr float kLog2E = 1.4426950408889634f;

// Of one head; g is the running sum of a dt from the start of the step, in units of log 2 so that powers of 2
// serve. Tokens behind the end of the row have dt 0.
struct Decay {
  float dt[kTokens];
  float g[kTokens];
  float into[kTokens];    // exp(g_i): weight of the entering state; 0 behind a document start
  float out[kTokens];     // exp(g_last - g_j): weight in the leaving state; 0 before a document start
  float weight[kTokens];  // out dt
  float slope[kTokens];   // derivative of dt by u
  int first[kTokens];     // the last document start at or before the token, or -1: what it sees begins there
  // Weight of the entering state in the one that leaves.
  __device__ float carry() const { return into[kTokens - 1]; }
  // exp(g_i - g_j) where token i sees token j, else 0. Masked before the power is taken, which overflows
  // where j > i; never above 1, whatever the rounding of g.
  __device__ static float between(int i, int first_i, float g_i, int j, float g_j) {
    return j <= i && j >= first_i ? fast_exp2(fminf(g_i - g_j, 0.0f)) : 0.0f;
  }
};

// What a head's dt are made of.
struct HeadDecay {
  float bias, a;  // a = -exp(a_log)
  __device__ HeadDecay(const ScanArgs& args, int head)
      : bias(args.dt_bias[head]), a(-expf(args.a_log[head])) {}
};

// This lane's tokens 2 lane and 2 lane + 1 of a step, fetched one step ahead.
struct TokenPair {
  float u[2] = {0.0f, 0.0f};
  bool start[2] = {false, false};

  __device__ void fetch(const ScanArgs& args, const Place& place, int step_index) {
    const Step step(args, step_index);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int i = 2 * lane_index() + c;
      const bool valid = i < step.length;
      u[c] = valid ? *args.u.at(place.row, step.begin + i, place.head) : 0.0f;
      start[c] = valid && args.start != nullptr &&
                 args.start[place.row * args.start_row + (step.begin + i) * args.start_token] != 0;
    }
  }
};

// By warp 0.
__device__ inline void compute_decay(const TokenPair& tokens, int length, const HeadDecay& head,
                                     Decay& decay) {
  const int lane = lane_index();
  float dt[2], slope[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float v = tokens.u[c] + head.bias, e = expf(fminf(v, kSoftplusThreshold));
    dt[c] = 2 * lane + c >= length ? 0.0f : v > kSoftplusThreshold ? v : log1pf(e);
    slope[c] = v > kSoftplusThreshold ? 1.0f : e / (1.0f + e);
  }
  const float scale = head.a * kLog2E, own = scale * dt[0], both = own + scale * dt[1];
  const int second = 2 * lane + 1;
  const int last_own = tokens.start[1] ? second : tokens.start[0] ? 2 * lane : -1;
  float sum = both;
  int last = last_own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float other = shuffle_up(sum, distance);
    const int other_last = shuffle_up(last, distance);
    if (lane >= distance) {
      sum += other;
      if (other_last > last) last = other_last;
    }
  }
  float before = shuffle_up(sum, 1);
  int last_before = shuffle_up(last, 1);
  if (lane == 0) before = 0.0f, last_before = -1;
  const float g[2] = {before + own, before + both};
  const int first[2] = {tokens.start[0] ? 2 * lane : last_before, last};
  const float g_last = shuffle(g[1], kWarp - 1);
  const int first_last = shuffle(last, kWarp - 1);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int i = 2 * lane + c;
    const float out = i >= first_last ? fast_exp2(fminf(g_last - g[c], 0.0f)) : 0.0f;
    decay.dt[i] = dt[c];
    decay.g[i] = g[c];
    decay.into[i] = first[c] < 0 ? fast_exp2(g[c]) : 0.0f;
    decay.out[i] = out;
    decay.weight[i] = out * dt[c];
    decay.slope[i] = slope[c];
    decay.first[i] = first[c];
  }
}

// cos and sin of the rotation by the length of a step, which moves states from one step's frame to the next.
template <int N>
struct Frame {
  float cos[N / 2], sin[N / 2];
  __device__ void load(const ScanArgs& args, int length) {
    static_assert(N <= kThreads);
    const int i = static_cast<int>(threadIdx.x);
    if (args.cos == nullptr || i >= N) return;
    const int64_t row = int64_t{length} * (N / 2);
    if (i < N / 2)
      cos[i] = args.cos[row + i];
    else
      sin[i - N / 2] = args.sin[row + i - N / 2];
  }
};

}  // namespace transxssm::cuda::ssd
