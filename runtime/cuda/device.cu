#include "runtime/cuda/device.h"

#include <atomic>
#include <cstdlib>
#include <utility>

#include "runtime/error.h"

namespace transxssm::cuda {
namespace {

thread_local bool chose_device = false;
std::atomic<int> latest_device{-1};

// The failures that mean "no device here" rather than a defect.
bool no_driver(cudaError_t status) {
  return status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary;
}

int count_devices(cudaError_t& status) {
  int count = 0;
  status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) cudaGetLastError();
  return status == cudaSuccess ? count : 0;
}

}  // namespace

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, where the device can go on
  throw DeviceError("{}:{}: {} failed: {} ({})", file, line, call, cudaGetErrorString(status),
                    cudaGetErrorName(status));
}

int num_devices() {
  cudaError_t status = cudaSuccess;
  const int count = count_devices(status);
  if (!no_driver(status) && status != cudaErrorNoDevice)
    check(status, "cudaGetDeviceCount", __FILE__, __LINE__);
  return count;
}

DeviceProperties device_properties(int index) {
  cudaError_t status = cudaSuccess;
  const int count = count_devices(status);
  if (no_driver(status))
    throw DeviceError(
        "device cuda:{}: no NVIDIA driver for CUDA {}.{} is at work on this machine; install or update the "
        "driver (nvidia-smi shows it), or choose the device cpu",
        index, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  if (status != cudaErrorNoDevice) check(status, "cudaGetDeviceCount", __FILE__, __LINE__);
  if (count == 0)
    throw DeviceError(
        "device cuda:{}: the driver shows this process no GPU; look at CUDA_VISIBLE_DEVICES and nvidia-smi, "
        "or choose the device cpu",
        index);
  if (index < 0 || index >= count)
    throw DeviceError("device cuda:{}: this machine shows {} GPU{}, cuda:0{}; choose one of them", index,
                      count, count > 1 ? "s" : "", count > 1 ? fmt::format(" to cuda:{}", count - 1) : "");
  cudaDeviceProp found;
  TRANSXSSM_CUDA_CHECK(cudaGetDeviceProperties(&found, index));
  if (found.major < 8)
    throw DeviceError(
        "device cuda:{}: {} has compute capability {}.{}, but the kernels need 8.0 (A100) or newer; choose "
        "another GPU or the device cpu",
        index, found.name, found.major, found.minor);
  return {index,
          found.name,
          std::string(found.uuid.bytes, sizeof found.uuid.bytes),
          found.major,
          found.minor,
          found.multiProcessorCount,
          static_cast<int64_t>(found.totalGlobalMem),
          static_cast<int64_t>(found.sharedMemPerBlockOptin),
          int64_t{found.l2CacheSize}};
}

void use_device(int index) {
  device_properties(index);
  TRANSXSSM_CUDA_CHECK(cudaSetDevice(index));
  chose_device = true;
  latest_device = index;
}

void use_latest_device() {
  if (!chose_device && latest_device >= 0) use_device(latest_device);
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

void EventHandle::record(cudaStream_t stream) {
  TRANSXSSM_CUDA_CHECK(cudaEventRecord(event_, stream));
}

void EventHandle::block(cudaStream_t stream) const {
  TRANSXSSM_CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0));
}

bool EventHandle::reached() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery", __FILE__, __LINE__);
  return true;
}

float EventHandle::milliseconds_since(const EventHandle& start) const {
  TRANSXSSM_CUDA_CHECK(cudaEventSynchronize(start.event_));
  TRANSXSSM_CUDA_CHECK(cudaEventSynchronize(event_));
  float milliseconds = 0;
  TRANSXSSM_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds;
}

}  // namespace transxssm::cuda
