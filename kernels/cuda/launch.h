// Launching a kernel on a queue, with errors that name it.
#pragma once

#include <cuda_runtime_api.h>
#include <gpu_instructions.h>

#include <cstddef>
#include <string_view>
#include <tuple>
#include <utility>

#include "runtime/error.h"

namespace transxssm::cuda {

struct LaunchShape {
  dim3 grid;   // blocks
  dim3 block;  // threads: whole warps
  size_t shared_bytes = 0;
};

// The kernel's name in the text of a launch's arguments: "scale<float, 4>" of "scale<float, 4>, shape, queue,
// x".
constexpr std::string_view kernel_name(std::string_view arguments) {
  int depth = 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const char c = arguments[i];
    if (c == '<' || c == '(') ++depth;
    if (c == '>' || c == ')') --depth;
    if (c == ',' && depth == 0) return arguments.substr(0, i);
  }
  return arguments;
}

// Queues kernel(args...), each argument converted to the kernel's parameter. Throws DeviceError that names
// the kernel where it cannot be launched. Called through TRANSXSSM_LAUNCH.
template <class... Parameters, class... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), const LaunchShape& shape,
            cudaStream_t queue, Args&&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args), "a kernel takes all of its arguments");
  const std::tuple<Parameters...> parameters(std::forward<Args>(args)...);
  const cudaError_t status =
      launch_kernel(name, kernel, shape.grid, shape.block, shape.shared_bytes, queue, parameters);
  if (status != cudaSuccess)
    throw DeviceError(
        "launch of {} ({} x {} x {} blocks of {} x {} x {} threads, {} bytes of shared memory): {}", name,
        shape.grid.x, shape.grid.y, shape.grid.z, shape.block.x, shape.block.y, shape.block.z,
        shape.shared_bytes, cudaGetErrorString(status));
}

}  // namespace transxssm::cuda

// TRANSXSSM_LAUNCH(kernel<T, 4>, LaunchShape{...}, queue, arguments...): launch() with the kernel's name.
#define TRANSXSSM_LAUNCH(...) \
  ::transxssm::cuda::launch(::transxssm::cuda::kernel_name(#__VA_ARGS__), __VA_ARGS__)
