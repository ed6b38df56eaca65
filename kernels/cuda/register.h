// The entry to the CUDA operations, without CUDA's types.
#pragma once

namespace transxssm {

// Registers the operations for NVIDIA GPUs (kernels/operations.h).
void register_cuda_operations();

}  // namespace transxssm
