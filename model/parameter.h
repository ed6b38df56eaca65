// Parameters of one rank: what each is, which part of it is here, and over which ranks its gradient is
// summed. All live in four flat f32 arrays of one layout (weight, gradient and AdamW's two moments), vectors
// before matrices, so that gradient buckets, norms and the optimizer walk contiguous memory, and fused
// projections are views of neighbours. Networks that compute in bf16 hold a fifth: the weights, rounded.
// Where the processor has a faster layout for a product's weight there are copies in it (kernels/gemm.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/linear.h"
#include "parallel/sharding.h"
#include "runtime/arena.h"
#include "runtime/stream.h"

namespace transxssm {

enum class Init {
  normal,   // normal(0, ModelConfig::initializer_range)
  uniform,  // in +-ParameterSpec::init_range
  ones,     // norms, residual weights, D skip
  zeros,    // biases of products
  a_log,    // log of uniform [1, 16]
  dt_bias,  // inverse softplus of log-uniform [1e-3, 1e-1]
};

struct ParameterSpec {
  std::string name;    // global, the name in checkpoints and exports
  Shape global_shape;  // logical, without padding
  Box box;             // the part of it on this rank
  Init init = Init::normal;
  double init_range = 0;  // of Init::uniform
  // Copies: number of neighbouring tp ranks whose copies meet different data, so that their gradients are
  // summed (KV heads or state groups shared by ranks). 1: none. Every gradient is summed over dp besides.
  int gradient_sum_share = 1;
  // One copy of each element is the owner's: it counts in the gradient norm and is written to checkpoints.
  bool owner = true;
  // Both ends of a tied embedding: the gradient is summed over the first and last stage.
  bool tied_pair = false;

  bool decays() const { return global_shape.rank() >= 2; }  // weight decay: matrices only
};

struct Parameter {
  ParameterSpec spec;
  Tensor weight, gradient;     // [box.extent]
  Tensor operand;              // [box.extent] the weight as matrix products take it: rounded, or itself
  Tensor exp_avg, exp_avg_sq;  // [box.extent] AdamW's moments
  int64_t offset = 0;          // of its first element in the flat arrays
  int64_t num_elements() const { return weight.num_elements(); }
};

// A matrix product with a weight: rows of `count` adjacent matrices.
struct LinearSpec {
  int first = 0;
  int count = 1;
  int64_t first_row = 0;
  int64_t num_rows = 0;                  // 0: all that follow
  bool forward = true, backward = true;  // which of its products are formed
  int bias = -1;                         // the first of as many adjacent vectors; negative: none
  bool add_bias = true;  // of ranks whose parts of a product are summed, one adds the bias they all hold
};

class ParameterStore {
 public:
  // Matrix products take weights in `operand_dtype`: f32 or bf16.
  explicit ParameterStore(DType operand_dtype = DType::f32) : operand_dtype_(operand_dtype) {}
  // Declares a parameter; returns its index. Parameters declared with `adjacent` follow the previous one
  // without a gap, so that fused() can view them as one matrix.
  int declare(ParameterSpec spec, bool adjacent = false);
  // Declares a product, after its parameters; returns its index.
  int declare_linear(const LinearSpec& spec);
  // Allocates on `device`. `with_optimizer` false leaves out gradients, moments and the weights' packed
  // copies (inference, whose products have few rows).
  void allocate(bool with_optimizer, Device device = {});
  // Same start on every mesh: each element is a function of (seed, name, global index).
  void initialise(Stream& stream, uint64_t seed, double initializer_range);
  // After weights were written by other means than the optimizer: forms the operands again.
  void refresh_operands(Stream& stream) const;
  // After operands were written: their packed copies are formed again by the next products. Every writer of
  // operands calls it.
  void operands_changed() const;

  const Parameter& operator[](int index) const { return parameters_[static_cast<size_t>(index)]; }
  const std::vector<Parameter>& all() const { return parameters_; }
  // One view [sum of rows, columns] over `count` adjacent matrices (or vectors): of their weights or
  // gradients.
  Tensor fused_weight(int first, int count) const;
  Tensor fused_gradient(int first, int count) const;
  Linear linear(int index) const;

  const Tensor& flat_gradient() const { return gradient_; }
  // Contiguous parts of the flat arrays: what weight decay leaves alone (vectors), and what it does not
  // (matrices).
  Parameter vectors() const { return range(0, matrices_begin_); }
  Parameter matrices() const { return range(matrices_begin_, elements_ - matrices_begin_); }
  int64_t num_elements() const;  // logical elements on this rank, copies included
  int64_t num_owned_elements() const;
  int64_t weight_bytes() const { return weight_arena_.bytes(); }
  int64_t operand_bytes() const { return operand_arena_.bytes(); }
  // Of the packed copies of weights on `device`, known without allocating them.
  int64_t packed_bytes(const Device& device) const;
  int64_t optimizer_bytes() const { return optimizer_arena_.bytes(); }
  int64_t gradient_bytes() const { return gradient_arena_.bytes(); }
  void zero_gradients(Stream& stream) const;

 private:
  void place();
  Tensor fused(const Tensor& flat, int first, int count) const;
  Parameter range(int64_t begin, int64_t count) const;
  Shape shape(const LinearSpec& spec) const;  // [out,in] of its weight
  struct PackedLinear {
    LinearSpec spec;
    std::unique_ptr<PackedMatrix> forward, backward;  // null: that product is not formed
  };
  void carve_packed(Carver& carver, const Device& device) const;

  DType operand_dtype_;
  std::vector<Parameter> parameters_;
  std::vector<bool> adjacent_;  // to the one declared before
  int64_t matrices_begin_ = 0;  // vectors come before
  int64_t elements_ = 0;        // of the flat arrays, gaps included
  std::vector<PackedLinear> linears_;
  Arena weight_arena_, gradient_arena_, optimizer_arena_, operand_arena_, packed_arena_;
  Tensor weight_, gradient_, exp_avg_, exp_avg_sq_, operand_;
};

}  // namespace transxssm
