// Attention by cuDNN: whole rows (as many queries as keys, no documents inside), P 64 or 128.
// Plans are kept for every shape and layout that has been met.
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/cudnn_graph.h"

namespace transxssm::cuda::cudnn {

// Sizes of attention and the strides, in elements, of its [B,T,H,P] tensors and of log_sum_exp [B,H,T].
struct AttentionLayout {
  explicit AttentionLayout(const AttentionForward& args);
  explicit AttentionLayout(const AttentionBackward& args);
  auto operator<=>(const AttentionLayout&) const = default;

  using Strides = std::array<int64_t, 3>;  // of a row, of a token, of a head
  int64_t rows, tokens, heads, key_heads, head_dim;
  Strides q, k, v, out, log_sum_exp;  // log_sum_exp: of a row, 1, of a head; zeros where there is none
  Strides d_out{}, dq{}, dk{}, dv{};
};

// The graphs, and the numbers of their tensors.
struct ForwardGraph {
  explicit ForwardGraph(const AttentionLayout& layout);
  Graph graph;
  Graph::Id q, k, v, scale, unseen, out, log_sum_exp = 0;
};
// dq is summed over the keys in f32 with atomics: its last bits differ from run to run. The graph without
// them needs a workspace of 2 B H T^2 bytes on Hopper (4.3 GB at B 4, H 32, T 4096).
struct BackwardGraph {
  explicit BackwardGraph(const AttentionLayout& layout);
  Graph graph;
  Graph::Id q, k, v, out, d_out, log_sum_exp, scale, one, unseen, dq, dk, dv;
  Graph::Id sums;     // f32 [B,H,T]
  Graph::Id dq_sums;  // f32 [B,H,T,P]
};

// Queues an operation on the stream; returns the number of cuDNN's engine. DeviceError where there is none.
int64_t run(Stream& stream, const AttentionForward& args);
int64_t run(Stream& stream, const AttentionBackward& args);

}  // namespace transxssm::cuda::cudnn
