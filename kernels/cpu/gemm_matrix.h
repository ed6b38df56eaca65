// How a Gemm's tensors lie in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "runtime/tensor.h"

namespace transxssm::cpu {

// Elements between the rows of a matrix, as BLAS asks for them: a single row may have any.
inline int64_t row_stride(const Tensor& tensor, const char* name) {
  const int64_t rows = tensor.size(0), columns = tensor.size(1);
  const int64_t stride = rows > 1 ? tensor.stride(0) : std::max<int64_t>(1, columns);
  TRANSXSSM_CHECK(stride >= columns, "{} has rows of {} elements only {} apart", name, columns, stride);
  TRANSXSSM_CHECK(std::max({rows, columns, stride}) <= std::numeric_limits<int32_t>::max(),
                  "{} {} is larger than a matrix product takes", name, tensor.shape().to_string());
  return stride;
}

}  // namespace transxssm::cpu
