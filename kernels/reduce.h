// Reductions to one number, in f64 over fixed blocks summed in order: the same bits for any number of
// threads.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

// Sum of squares of a contiguous tensor.
double sum_of_squares(Stream& stream, const Tensor& x);
// Number of elements that are NaN or infinite, of a contiguous tensor.
int64_t count_not_finite(Stream& stream, const Tensor& x);

}  // namespace transxssm
