#include "kernels/cost.h"

#include <algorithm>
#include <initializer_list>

namespace transxssm {
namespace {

double bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) sum += static_cast<double>(t.num_bytes());
  return sum;
}

// Tensors that are read and written.
double twice(std::initializer_list<Tensor> tensors) {
  return 2 * bytes(tensors);
}

double elements(const Tensor& t) {
  return static_cast<double>(t.num_elements());
}

double scan_inputs(const SsdInput& in) {
  return bytes({in.x, in.b, in.c, in.u, in.c_scale, in.start});
}

// 2 operations an element of the state for what enters it, 2 for what leaves it.
double scan_flops(const SsdInput& in) {
  return 4 * elements(in.x) * static_cast<double>(in.b.size(3));
}

// 2 operations an element for each of the two products; of Tq x Tk scores those a query may see.
double attention_flops(const Tensor& q, const Tensor& k, int64_t query_offset) {
  const auto queries = static_cast<double>(q.size(1)), keys = static_cast<double>(k.size(1));
  const double seen = std::min(keys, static_cast<double>(query_offset) + (queries + 1) / 2);
  return 4 * elements(q) * seen;
}

}  // namespace

OperationCost cost(const Gemm& args) {
  const double depth = static_cast<double>(args.transpose_a ? args.a.size(0) : args.a.size(1));
  return {bytes({args.a, args.b}) + (args.accumulate ? 2 : 1) * bytes({args.c}),
          2 * elements(args.c) * depth};
}
OperationCost cost(const Copy& args) {
  return {bytes({args.from, args.to})};
}
OperationCost cost(const RmsNormForward& args) {
  return {bytes({args.x, args.branch, args.sum, args.y, args.rstd})};
}
OperationCost cost(const RmsNormBackward& args) {
  return {bytes({args.dy, args.d_sum, args.sum, args.x, args.rstd, args.dx, args.d_branch})};
}
OperationCost cost(const ResidualForward& args) {
  return {bytes({args.x, args.branch, args.y})};
}
OperationCost cost(const ResidualBackward& args) {
  return {bytes({args.dy, args.x, args.dx, args.d_branch})};
}
OperationCost cost(const BiasForward& args) {
  return {twice({args.y})};
}
OperationCost cost(const BiasBackward& args) {
  return {bytes({args.dy})};
}
OperationCost cost(const Rotary& args) {
  return {twice({args.x}) + bytes({args.position, args.scale})};
}
OperationCost cost(const SsdForward& args) {
  return {scan_inputs(args.in) + bytes({args.in.initial_state, args.y, args.final_state, args.chunk_states}),
          scan_flops(args.in)};
}
OperationCost cost(const SsdBackward& args) {
  return {scan_inputs(args.in) + bytes({args.chunk_states, args.dy, args.d_final_state, args.dx, args.db,
                                        args.dc, args.du, args.d_initial_state}),
          2 * scan_flops(args.in)};
}
OperationCost cost(const AttentionForward& args) {
  return {bytes({args.q, args.k, args.v, args.out, args.log_sum_exp}),
          attention_flops(args.q, args.k, args.query_offset)};
}
OperationCost cost(const AttentionBackward& args) {
  return {bytes({args.q, args.k, args.v, args.out, args.log_sum_exp, args.d_out, args.dq, args.dk, args.dv}),
          2 * attention_flops(args.q, args.k, args.query_offset)};
}
OperationCost cost(const SwigluForward& args) {
  return {bytes({args.gate, args.up, args.y})};
}
OperationCost cost(const SwigluBackward& args) {
  return {bytes({args.gate, args.up, args.dy, args.d_gate, args.d_up, args.y})};
}
OperationCost cost(const Conv1dForward& args) {
  return {bytes({args.x, args.start, args.initial_window, args.y, args.final_window})};
}
OperationCost cost(const Conv1dBackward& args) {
  return {bytes({args.x, args.start, args.dy, args.dx})};
}
OperationCost cost(const GatedNormSquares& args) {
  return {bytes({args.x, args.z, args.squares})};
}
OperationCost cost(const GatedNormForward& args) {
  return {bytes({args.x, args.z, args.squares, args.y})};
}
OperationCost cost(const GatedNormDots& args) {
  return {bytes({args.x, args.z, args.dy, args.dots})};
}
OperationCost cost(const GatedNormBackward& args) {
  return {bytes({args.x, args.z, args.squares, args.dots, args.dy, args.dx, args.dz})};
}
OperationCost cost(const EmbeddingForward& args) {
  return {bytes({args.ids, args.y}) +
          elements(args.y) * static_cast<double>(dtype_bytes(args.weight.dtype()))};
}
OperationCost cost(const EmbeddingBackward& args) {
  return {bytes({args.ids, args.dy}) +
          2 * elements(args.dy) * static_cast<double>(dtype_bytes(args.d_weight.dtype()))};
}
OperationCost cost(const CrossEntropyStatistics& args) {
  return {bytes({args.logits, args.targets, args.max, args.sum, args.target_logit})};
}
OperationCost cost(const CrossEntropyCombine& args) {
  return {bytes({args.slices, args.combined})};
}
OperationCost cost(const CrossEntropyLoss& args) {
  return {bytes({args.valid, args.max, args.sum, args.target_logit})};
}
OperationCost cost(const CrossEntropyBackward& args) {
  return {twice({args.logits}) + bytes({args.targets, args.valid, args.max, args.sum})};
}
OperationCost cost(const AdamW& args) {
  return {twice({args.weight, args.exp_avg, args.exp_avg_sq}) + bytes({args.gradient, args.rounded})};
}

}  // namespace transxssm
