// The bias of a matrix product: y += bias in every row. Its gradient is the sum of dy over the rows.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct BiasForward {
  Tensor y;     // [T,N] in and out
  Tensor bias;  // [N]
};
void run(Stream& stream, const BiasForward& args);

struct BiasBackward {
  Tensor dy;      // [T,N]
  Tensor d_bias;  // [N] +=
};
void run(Stream& stream, const BiasBackward& args);

}  // namespace transxssm
