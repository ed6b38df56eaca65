// Root-mean-square norm (Zhang & Sennrich 2019), fused with the residual sum that precedes it:
//   sum = residual_weight * x + branch        (only where `branch` is given; else sum is x itself)
//   y   = sum * rstd * weight                 rstd = 1 / sqrt(mean(sum^2) + eps), in f32
// The residual stream (x, sum, d_sum, dx) may be f32 where branch, y and their gradients are bf16; weights
// and rstd are f32 beside bf16.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct RmsNormForward {
  Tensor x;                  // [T,D]
  Tensor branch{};           // [T,D] or empty: no residual sum
  Tensor residual_weight{};  // [D] or empty: ones
  Tensor sum{};              // [T,D] out, with branch
  Tensor weight;             // [D]
  Tensor y;                  // [T,D] out
  Tensor rstd;               // [T] out
  double eps = 1e-6;
};
void run(Stream& stream, const RmsNormForward& args);

// total = d_sum + (gradient of sum through the norm).
// Without residual (x empty): dx = total.   With residual: d_branch = total, dx = residual_weight * total.
struct RmsNormBackward {
  Tensor dy;                   // [T,D]
  Tensor d_sum{};              // [T,D] or empty: gradient that reaches `sum` on other paths
  Tensor sum;                  // [T,D] what was normalised
  Tensor rstd;                 // [T]
  Tensor weight;               // [D]
  Tensor x{};                  // [T,D] residual input, or empty: no residual sum
  Tensor residual_weight{};    // [D] or empty: ones
  Tensor dx;                   // [T,D] out; may be dy or d_sum
  Tensor d_branch{};           // [T,D] out, with residual; may be d_sum, not dx
  Tensor d_weight;             // [D] +=
  Tensor d_residual_weight{};  // [D] += or empty
};
void run(Stream& stream, const RmsNormBackward& args);

}  // namespace transxssm
