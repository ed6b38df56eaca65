// Devices and memory of the emulated CUDA runtime. The devices' memory is the host's.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/support/cuda/block.h"
#include "tests/support/cuda/emulator.h"
#include "tests/support/cuda/queue.h"

namespace {

using transxssm::cuda::emulated::drain;
using transxssm::cuda::emulated::drain_all;
using transxssm::cuda::emulated::enqueue;
using transxssm::cuda::emulated::refuse_to_record;
using transxssm::cuda::emulated::refuse_while_recording;
using transxssm::cuda::emulated::result;

constexpr size_t kTotalBytes = size_t{8} << 30;
constexpr int kMultiprocessors = 4;  // few: grids that cover the device by loops have something to loop over

struct Allocation {
  size_t bytes;
  cudaMemoryType type;
};

class Memory {
 public:
  cudaError_t allocate(void** memory, size_t bytes, cudaMemoryType type) {
    const std::lock_guard lock(mutex_);
    *memory = nullptr;
    if (type == cudaMemoryTypeDevice && bytes > kTotalBytes - used_) return cudaErrorMemoryAllocation;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(memory, 256, bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(*memory, 0xff, bytes);  // what is read before it is written is NaN
    allocations_[static_cast<char*>(*memory)] = {bytes, type};
    if (type == cudaMemoryTypeDevice) used_ += bytes;
    return cudaSuccess;
  }
  cudaError_t release(void* memory) {
    if (!memory) return cudaSuccess;
    const std::lock_guard lock(mutex_);
    const auto found = allocations_.find(static_cast<char*>(memory));
    if (found == allocations_.end()) return cudaErrorInvalidValue;
    if (found->second.type == cudaMemoryTypeDevice) used_ -= found->second.bytes;
    allocations_.erase(found);
    std::free(memory);
    return cudaSuccess;
  }
  cudaMemoryType type(const void* p) {
    const std::lock_guard lock(mutex_);
    auto next = allocations_.upper_bound(static_cast<char*>(const_cast<void*>(p)));
    if (next == allocations_.begin()) return cudaMemoryTypeUnregistered;
    --next;
    return static_cast<const char*>(p) < next->first + next->second.bytes ? next->second.type
                                                                          : cudaMemoryTypeUnregistered;
  }
  size_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return kTotalBytes - used_;
  }

 private:
  std::mutex mutex_;
  std::map<char*, Allocation> allocations_;
  size_t used_ = 0;
};

Memory& memory() {
  static auto* instance = new Memory;  // tensors of static life are released after it would be
  return *instance;
}

thread_local int thread_device = 0;
transxssm::cuda::emulated::Machine machine;

bool is_device(int device) {
  return device >= 0 && device < machine.devices;
}

}  // namespace

namespace transxssm::cuda::emulated {

void use_machine(const Machine& wanted) {
  machine = wanted;
}
int current_device() {
  return thread_device;
}

}  // namespace transxssm::cuda::emulated

cudaError_t cudaGetDeviceCount(int* count) {
  *count = machine.driver ? machine.devices : 0;
  if (!machine.driver) return result(cudaErrorInsufficientDriver);
  return *count > 0 ? cudaSuccess : result(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  thread_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = thread_device;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  *properties = {};
  properties->uuid.bytes[0] = static_cast<char>(device + 1);
  std::snprintf(properties->name, sizeof(properties->name), "emulated GPU");
  properties->major = machine.compute_major;
  properties->totalGlobalMem = kTotalBytes;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = transxssm::cuda::emulated::kMaxSharedBytes;
  properties->sharedMemPerMultiprocessor = 228 * 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 64 * 1024;
  properties->warpSize = transxssm::cuda::emulated::kWarpLanes;
  properties->maxThreadsPerBlock = transxssm::cuda::emulated::kMaxLanes;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->multiProcessorCount = kMultiprocessors;
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = machine.compute_major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = transxssm::cuda::emulated::kMaxSharedBytes;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = transxssm::cuda::emulated::kWarpLanes;
      return cudaSuccess;
    default:
      return result(cudaErrorNotSupported);
  }
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = memory().free_bytes();
  *total = kTotalBytes;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (const cudaError_t status = refuse_while_recording(); status != cudaSuccess) return status;
  return result(memory().allocate(p, bytes, cudaMemoryTypeDevice));
}
cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned) {
  return result(memory().allocate(p, bytes, cudaMemoryTypeManaged));
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  return result(memory().allocate(p, bytes, cudaMemoryTypeHost));
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  return cudaMallocHost(p, bytes);
}
// Freeing waits for the device.
cudaError_t cudaFree(void* p) {
  if (const cudaError_t status = refuse_while_recording(); status != cudaSuccess) return status;
  const cudaError_t status = drain_all();
  const cudaError_t released = result(memory().release(p));
  return status != cudaSuccess ? status : released;
}
cudaError_t cudaFreeHost(void* p) {
  return cudaFree(p);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  *attributes = {};
  attributes->type = memory().type(p);
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

// Memory that is not the runtime's is read at once and written before the call returns, as for pageable
// memory.
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return result(cudaErrorInvalidValue);
  const auto copy = [=](const void* source, size_t source_pitch) {
    for (size_t row = 0; row < height; ++row)
      std::memcpy(static_cast<char*>(to) + row * to_pitch,
                  static_cast<const char*>(source) + row * source_pitch, width);
  };
  const bool to_pageable = memory().type(to) == cudaMemoryTypeUnregistered;
  if (memory().type(from) != cudaMemoryTypeUnregistered || to_pageable) {
    const cudaError_t status = enqueue(stream, [=] { copy(from, from_pitch); });
    return status == cudaSuccess && to_pageable ? drain(stream) : status;
  }
  if (const cudaError_t status = refuse_to_record(stream); status != cudaSuccess) return status;
  std::vector<char> staged(width * height);
  for (size_t row = 0; row < height; ++row)
    std::memcpy(staged.data() + row * width, static_cast<const char*>(from) + row * from_pitch, width);
  return enqueue(stream, [=, staged = std::move(staged)] { copy(staged.data(), width); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return bytes == 0 ? cudaSuccess : cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return status == cudaSuccess ? drain(nullptr) : status;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
