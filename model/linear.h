// A matrix product with its two gradients, over one weight or several fused ones. y[T,out] = x[T,in]
// W[out,in]^T + bias[out].
#pragma once

#include "kernels/bias.h"
#include "kernels/gemm.h"

namespace transxssm {

struct Linear {
  Tensor weight;           // [out,in] in the type of x and y
  Tensor gradient;         // [out,in] f32, accumulates; empty for inference
  Tensor bias{};           // [out] f32, or empty: none to add
  Tensor bias_gradient{};  // [out] f32, accumulates; or empty
  // Copies of the weight for forward and backward_input; null: none.
  PackedMatrix* packed_forward = nullptr;
  PackedMatrix* packed_backward = nullptr;

  void forward(Stream& stream, const Tensor& x, const Tensor& y) const {
    run(stream, Gemm{.a = x, .b = weight, .c = y, .transpose_b = true, .packed_b = packed_forward});
    if (bias) run(stream, BiasForward{y, bias});
  }
  void backward_input(Stream& stream, const Tensor& dy, const Tensor& dx) const {
    run(stream, Gemm{.a = dy, .b = weight, .c = dx, .packed_b = packed_backward});
  }
  void backward_weight(Stream& stream, const Tensor& dy, const Tensor& x) const {
    run(stream, Gemm{.a = dy, .b = x, .c = gradient, .transpose_a = true, .accumulate = true});
    if (bias_gradient) run(stream, BiasBackward{dy, bias_gradient});
  }
};

}  // namespace transxssm
