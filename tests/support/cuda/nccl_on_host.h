// What a test may do to the NCCL of the emulated device.
#pragma once

namespace transxssm::cuda::emulated {

// Every group reports an error from now on, as when a process of its job is lost; what waits for others
// returns without a result.
void break_nccl();

}  // namespace transxssm::cuda::emulated
