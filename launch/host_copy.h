// Tensors of a stream's device in host memory, for what the host looks at: checks, results, weights read from
// files.
#pragma once

#include <vector>

#include "runtime/stream.h"

namespace transxssm {

// The elements of x (f32 or bf16, unit stride in the last dim), row-major; waits for them.
std::vector<float> to_host(Stream& stream, const Tensor& x);
// Overwrites x, contiguous f32, with elements of a tensor of its shape in host memory; waits until done.
void from_host(Stream& stream, const Tensor& elements, const Tensor& x);

}  // namespace transxssm
