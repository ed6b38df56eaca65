// Element-wise copy between tensors of one shape, whatever their strides (unit stride in the last dim), on
// the stream's device; f32 and bf16 convert into each other, rounding to nearest even.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct Copy {
  Tensor from;
  Tensor to;
};
void run(Stream& stream, const Copy& args);

}  // namespace transxssm
