// The program `transxssm` on the emulated device: in place of launch/backends_cpu.cc.
#include "kernels/cuda/register.h"
#include "launch/backends.h"
#include "runtime/cuda/register.h"

namespace transxssm {

void register_backends() {
  register_cuda();
  register_cuda_operations();
}

}  // namespace transxssm
