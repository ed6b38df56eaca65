// One token of the state-space scan by the recurrence itself, in f32: generation. Bytes that must be moved,
// per head: the state in and out, 8 P N.
#include "kernels/cuda/ssd_decay.h"
#include "kernels/cuda/ssd_launch.h"

namespace transxssm::cuda::ssd {

namespace {

constexpr int kStepWarps = 4, kStepRows = 16;  // of a state, a block's

struct StepArgs {
  ScanArgs in;
  Heads<bf16> y;
  States entering, leaving;
};

}  // namespace

// Block (16 rows of a head, row). A warp takes one row of the state at a time, a lane the columns lane + 32
// i: those that turn with each other are the same lane's.
template <int N>
__global__ void __launch_bounds__(kStepWarps* kWarp) ssd_step_kernel(StepArgs args) {
  constexpr int kColumns = N / kWarp;
  const ScanArgs& in = args.in;
  const int lane = lane_index(), row = static_cast<int>(blockIdx.y);
  const int blocks = in.tiles * (kWidth / kStepRows), head = static_cast<int>(blockIdx.x) / blocks;
  const int first = static_cast<int>(blockIdx.x) % blocks * kStepRows;
  const int group = head / in.heads_per_group;
  const HeadDecay decay(in, head);
  const float v = *in.u.at(row, 0, head) + decay.bias;
  const float dt = v > kSoftplusThreshold ? v : log1pf(expf(v));
  const bool reset = in.start != nullptr && in.start[row * in.start_row] != 0;
  const float carry = expf(decay.a * dt);
  const float scale = scale_of_c(in, row, 0), skip = in.d_skip == nullptr ? 0.0f : in.d_skip[head];
  float b[kColumns], c[kColumns], cos[kColumns / 2], sin[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    b[i] = to_float(in.b.at(row, 0, group)[lane + kWarp * i]);
    c[i] = to_float(in.c.at(row, 0, group)[lane + kWarp * i]);
  }
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {  // of one token
    cos[i] = in.cos == nullptr ? 1.0f : in.cos[N / 2 + lane + kWarp * i];
    sin[i] = in.sin == nullptr ? 0.0f : in.sin[N / 2 + lane + kWarp * i];
  }
  for (int p = first + warp_index(); p < first + kStepRows; p += kStepWarps) {
    const float x = to_float(in.x.at(row, 0, head)[p]);
    const int64_t line = int64_t{p} * N + lane;
    const float* from = static_cast<const float*>(args.entering.data);
    float state[kColumns], y = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      state[i] = dt * x * b[i];
      if (from != nullptr && !reset)
        state[i] += carry * from[args.entering.offset(row, 0, head) + line + kWarp * i];
      y += state[i] * c[i];
    }
    y = warp_sum(y);
    if (lane == 0) args.y.at(row, 0, head)[p] = to_bf16(scale * y + skip * x);
    if (args.leaving.data == nullptr) continue;
    float* to = static_cast<float*>(args.leaving.data) + args.leaving.offset(row, 0, head) + line;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      rotate_pair(state[i], state[i + kColumns / 2], cos[i], -sin[i]);
      to[kWarp * i] = state[i];
      to[kWarp * (i + kColumns / 2)] = state[i + kColumns / 2];
    }
  }
}

void step_forward(Stream& stream, const SsdForward& args) {
  const ScanPlan plan(args.in, 1);
  const StepArgs step{.in = plan.args,
                      .y = heads_of<bf16>(args.y),
                      .entering = states_of(args.in.initial_state),
                      .leaving = states_of(args.final_state)};
  const LaunchShape shape{.grid = grid_of(plan.slices * (kWidth / kStepRows), plan.rows, 1),
                          .block = dim3(kStepWarps * kWarp)};
  if (plan.state_dim == 64)
    TRANSXSSM_LAUNCH(ssd_step_kernel<64>, shape, queue_of(stream), step);
  else
    TRANSXSSM_LAUNCH(ssd_step_kernel<128>, shape, queue_of(stream), step);
}

}  // namespace transxssm::cuda::ssd
