#include "tests/cuda/device.h"

#include <cstring>

#include "kernels/cuda/register.h"
#include "runtime/cuda/register.h"
#include "tests/cuda/managed.h"
#include "tests/support/device.h"

namespace transxssm {
namespace {

std::shared_ptr<void> allocate_managed(int64_t bytes) {
  const auto memory = std::make_shared<cuda::Managed<std::byte>>(static_cast<size_t>(bytes));
  std::memset(memory->data(), 0, static_cast<size_t>(bytes));
  return {memory, memory->data()};
}

}  // namespace

void use_cuda_for_tests() {
  register_cuda();
  register_cuda_operations();
  test_device() = {.name = "cuda:0",
                   .device = {DeviceKind::cuda, 0},
                   .dtypes = {DType::f32, DType::bf16},
                   .row_bytes = 16,
                   .allocate = allocate_managed};
}

}  // namespace transxssm
