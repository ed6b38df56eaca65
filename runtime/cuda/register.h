// The entry to the CUDA device runtime, without CUDA's types.
#pragma once

namespace transxssm {

// Registers NVIDIA GPUs as the devices of this program (runtime/device.h). Needs no driver: a device is asked
// for only when one is used.
void register_cuda();

}  // namespace transxssm
