#include "kernels/cuda/register.h"
#include "launch/backends.h"
#include "parallel/cuda/register.h"
#include "runtime/cuda/register.h"

namespace transxssm {

void register_backends() {
  register_cuda();
  register_cuda_operations();
  register_nccl();
}

}  // namespace transxssm
