// Addresses of elements, for kernels that walk strided views by pointer.
#pragma once

#include "runtime/tensor.h"

namespace transxssm::cpu {

// Element (i, j, k, ..) of a tensor; missing indices are zero. The caller has checked the dtype.
template <class T, class... Index>
inline T* address(const Tensor& tensor, Index... index) {
  int dim = 0;
  int64_t offset = 0;
  ((offset += static_cast<int64_t>(index) * tensor.stride(dim++)), ...);
  return static_cast<T*>(tensor.raw()) + offset;
}

}  // namespace transxssm::cpu
