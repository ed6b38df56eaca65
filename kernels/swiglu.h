// SwiGLU (Shazeer 2020): y = silu(gate) * up.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct SwigluForward {
  Tensor gate;  // [T,F]
  Tensor up;    // [T,F]
  Tensor y;     // [T,F] out
};
void run(Stream& stream, const SwigluForward& args);

struct SwigluBackward {
  Tensor gate;    // [T,F]
  Tensor up;      // [T,F]
  Tensor dy;      // [T,F]
  Tensor d_gate;  // [T,F] out; may be gate
  Tensor d_up;    // [T,F] out; may be up
  Tensor y{};     // [T,F] out: the forward's result again (not saved), or empty; may be dy
};
void run(Stream& stream, const SwigluBackward& args);

}  // namespace transxssm
