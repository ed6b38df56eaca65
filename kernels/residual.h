// Learned residual: y = weight * x + branch, weight per channel (TransXSSM's residual weights). The residual
// stream (x, y, dy, dx) may be f32 where the branch is bf16.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct ResidualForward {
  Tensor x;         // [T,D]
  Tensor branch;    // [T,D]
  Tensor weight{};  // [D] or empty: ones
  Tensor y;         // [T,D] out; may be branch
};
void run(Stream& stream, const ResidualForward& args);

// dx = weight * dy, d_weight += sum over T of dy * x. The branch's gradient is dy itself, rounded to
// `d_branch` where the branch has a type of its own.
struct ResidualBackward {
  Tensor dy;          // [T,D]
  Tensor x;           // [T,D]
  Tensor weight{};    // [D] or empty: ones
  Tensor dx;          // [T,D] out
  Tensor d_weight{};  // [D] += or empty
  Tensor d_branch{};  // [T,D] out, or empty
};
void run(Stream& stream, const ResidualBackward& args);

}  // namespace transxssm
