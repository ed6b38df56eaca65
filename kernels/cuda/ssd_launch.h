// What the launches of the scan share on the host: checks, views, and the cut into segments.
#pragma once

#include "kernels/cuda/queue.h"
#include "kernels/cuda/ssd_shapes.h"
#include "kernels/ssd_scan.h"

namespace transxssm::cuda::ssd {

// Blocks of 128 threads at a time on a multiprocessor, which the kernels keep their registers within.
template <int N>
inline constexpr int kBlocksPerMultiprocessor = N == 64 ? 3 : 2;

// UsageError for head and state dims the kernels are not made for, an internal error for all else that
// SsdInput does not allow.
void check_input(const SsdInput& in);
// A bf16 tensor of rows that kernels may copy 16 bytes at a time.
void check_rows(const Tensor& tensor, const char* name, const Shape& shape);
// A state [..,P,N], or empty: f32, or bf16 where that is allowed, with [P,N] contiguous.
void check_state(const Tensor& state, const char* name, const Shape& shape, bool may_be_bf16);

template <class T>
Heads<T> heads_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.raw()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}
States states_of(const Tensor& state);               // [B,H,P,N] or empty: the same for every place
States chunk_states_of(const Tensor& chunk_states);  // [B,chunks,H,P,N] or empty

// How many segments a row is cut into: as many as let the GPU run at once what rows and heads alone do not
// fill, of two steps at least.
int64_t segments_for(const SsdInput& in, int blocks_per_multiprocessor);

// Arguments of the kernels, and the grid's extents.
struct ScanPlan {
  ScanPlan(const SsdInput& in, int64_t max_segments);
  ScanArgs args;
  int64_t rows, slices, segments, state_dim;
};

dim3 grid_of(int64_t x, int64_t y, int64_t z);

// Scratch of a scan in segments: the state at every segment's border, and what of it gets through a segment.
struct SegmentStates {
  SegmentStates() = default;
  SegmentStates(Carver& carver, const ScanPlan& plan);
  // Place: the segment + offset.
  States view(int64_t offset) const;
  const ScanPlan* plan = nullptr;
  float* states = nullptr;  // [B, segments, H, P, N]
  float* carry = nullptr;   // [B, segments, slices]
};

// From the states that segments form on their own to those that enter them (or, backwards, gradients that
// leave them): in the order of the tokens, to[s + 1] += carry[s] R(-length) to[s], with `border` in to[0]; or
// against it, to[s - 1] += carry[s] R(length) to[s], with `border` in to[segments - 1].
void pass_states(Stream& stream, const ScanPlan& plan, const SegmentStates& to, const States& border,
                 bool backwards);

// From the states that enter chunks to those that enter every step of them: [B, steps, H, P, N] in bf16.
void form_step_states(Stream& stream, const SsdInput& in, const States& chunk_states,
                      const States& step_states);

// One token, of checked arguments without chunk_states.
void step_forward(Stream& stream, const SsdForward& args);

// Of the backward: db or dc [B,T,G,N] from [B,T,slices,N]; du [B,T,H] from [B,T,slices]; the gradients of the
// parameters, to which [B, segments, slices, 3] is added (d_skip may be null).
void sum_group(Stream& stream, const ScanPlan& plan, const float* slices, const Heads<bf16>& to);
void sum_du(Stream& stream, const ScanPlan& plan, const float* tiles, const Heads<float>& to);
void sum_parameters(Stream& stream, const ScanPlan& plan, const float* parts, float* dt_bias, float* a_log,
                    float* d_skip);

}  // namespace transxssm::cuda::ssd
