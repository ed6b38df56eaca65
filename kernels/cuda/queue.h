// The CUDA stream behind a stream of the program.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/stream.h"

namespace transxssm::cuda {

inline cudaStream_t queue_of(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.queue()->native());
}

}  // namespace transxssm::cuda
