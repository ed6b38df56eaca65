// Mamba-2's gated RMSNorm: v = x * silu(z), y = v * rstd * weight, rstd = 1 / sqrt(mean of v^2 over the group
// + eps). W channels in `groups` equal groups. In two steps each way, so that a group split over ranks can
// sum between them.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct GatedNormSquares {
  Tensor x;        // [T,W]
  Tensor z;        // [T,W]
  Tensor squares;  // [T,groups] out: sums of v^2
};
void run(Stream& stream, const GatedNormSquares& args);

struct GatedNormForward {
  Tensor x, z;              // [T,W]
  Tensor weight;            // [W]
  Tensor squares;           // [T,groups] of whole groups
  int64_t group_width = 0;  // channels of a whole group, on all ranks together
  double eps = 1e-6;
  Tensor y;  // [T,W] out
};
void run(Stream& stream, const GatedNormForward& args);

struct GatedNormDots {
  Tensor x, z, weight;
  Tensor dy;    // [T,W]
  Tensor dots;  // [T,groups] out: sums of dy * weight * v
};
void run(Stream& stream, const GatedNormDots& args);

struct GatedNormBackward {
  Tensor x, z, weight, squares;
  Tensor dots;  // [T,groups] of whole groups
  int64_t group_width = 0;
  double eps = 1e-6;
  Tensor dy;        // [T,W]
  Tensor dx;        // [T,W] out; may be dy
  Tensor dz;        // [T,W] out
  Tensor d_weight;  // [W] +=
};
void run(Stream& stream, const GatedNormBackward& args);

}  // namespace transxssm
