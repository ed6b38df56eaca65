// The entry to NCCL, without its types.
#pragma once

namespace transxssm {

// Registers NCCL as the transport of device tensors (parallel/device_transport.h).
void register_nccl();

}  // namespace transxssm
