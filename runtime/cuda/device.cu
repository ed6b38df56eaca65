#include "runtime/cuda/device.h"

#include <utility>

#include "runtime/error.h"

namespace transxssm::cuda {

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, where the device can go on
  throw DeviceError("{}:{}: {} failed: {} ({})", file, line, call, cudaGetErrorString(status),
                    cudaGetErrorName(status));
}

std::vector<DeviceProperties> device_properties() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return {};
  }
  check(status, "cudaGetDeviceCount", __FILE__, __LINE__);
  std::vector<DeviceProperties> devices;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp found;
    TRANSXSSM_CUDA_CHECK(cudaGetDeviceProperties(&found, index));
    devices.push_back({index, found.name, found.major, found.minor, found.multiProcessorCount,
                       static_cast<int64_t>(found.totalGlobalMem),
                       static_cast<int64_t>(found.sharedMemPerBlockOptin), int64_t{found.l2CacheSize}});
  }
  return devices;
}

void use_device(int index) {
  int major = 0;
  TRANSXSSM_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  if (major < 8) {
    throw DeviceError("GPU {} has compute capability {}.x; the kernels need 8.0 (A100) or newer", index,
                      major);
  }
  TRANSXSSM_CUDA_CHECK(cudaSetDevice(index));
}

StreamHandle::StreamHandle() {
  TRANSXSSM_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

// Failures on the way down are those of earlier work, which its own check has thrown or the process is
// ending.
StreamHandle::~StreamHandle() {
  if (!stream_) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

StreamHandle::StreamHandle(StreamHandle&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}

StreamHandle& StreamHandle::operator=(StreamHandle&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}

void StreamHandle::synchronize() const {
  TRANSXSSM_CUDA_CHECK(cudaStreamSynchronize(stream_));
}

EventHandle::EventHandle(bool timing) {
  TRANSXSSM_CUDA_CHECK(cudaEventCreateWithFlags(&event_, timing ? cudaEventDefault : cudaEventDisableTiming));
}

EventHandle::~EventHandle() {
  if (event_) cudaEventDestroy(event_);
}

EventHandle::EventHandle(EventHandle&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}

EventHandle& EventHandle::operator=(EventHandle&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

void EventHandle::record(const StreamHandle& stream) {
  TRANSXSSM_CUDA_CHECK(cudaEventRecord(event_, stream.get()));
}

void EventHandle::block(const StreamHandle& stream) const {
  TRANSXSSM_CUDA_CHECK(cudaStreamWaitEvent(stream.get(), event_));
}

float EventHandle::milliseconds_since(const EventHandle& start) const {
  TRANSXSSM_CUDA_CHECK(cudaEventSynchronize(start.event_));
  TRANSXSSM_CUDA_CHECK(cudaEventSynchronize(event_));
  float milliseconds = 0;
  TRANSXSSM_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds;
}

}  // namespace transxssm::cuda
