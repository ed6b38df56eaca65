#include "tests/cuda/device.h"

#include "kernels/cuda/register.h"
#include "runtime/cuda/register.h"
#include "tests/support/device.h"

namespace transxssm {

void use_cuda_for_tests() {
  register_cuda();
  register_cuda_operations();
  test_device() = {.name = "cuda:0",
                   .device = {DeviceKind::cuda, 0},
                   .dtypes = {DType::f32, DType::bf16},
                   .row_bytes = 16};
}

}  // namespace transxssm
