// Reductions to one number, in f64 over fixed blocks summed in order: the same bits for any number of
// threads.
#pragma once

#include <span>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

// Sum of squares of contiguous tensors, in their order.
double sum_of_squares(Stream& stream, std::span<const Tensor> tensors);
inline double sum_of_squares(Stream& stream, const Tensor& x) {
  return sum_of_squares(stream, std::span(&x, 1));
}
// Number of elements that are NaN or infinite, of a contiguous tensor.
int64_t count_not_finite(Stream& stream, const Tensor& x);

}  // namespace transxssm
