// CUDA devices, streams and events. Included by .cu files alone: it names CUDA types.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace transxssm::cuda {

// Throws DeviceError that names the call and its place where `status` is a failure.
void check(cudaError_t status, const char* call, const char* file, int line);

// What kernels and plans ask of a device.
struct DeviceProperties {
  int index = 0;
  std::string name;
  int compute_major = 0, compute_minor = 0;  // sm_80: 8, 0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t shared_memory_bytes = 0;  // the most one block may use (opt-in)
  int64_t l2_bytes = 0;
};

// Devices this process may use, in order; empty where there is no driver or no device. Throws DeviceError for
// any other failure.
std::vector<DeviceProperties> device_properties();

// Makes a device current for this thread. Throws DeviceError where a device is older than the kernels, which
// are compiled for compute capability 8.0 and 9.0.
void use_device(int index);

// A queue of work that does not wait for the default stream. Movable; waits for its work when destroyed.
class StreamHandle {
 public:
  StreamHandle();
  ~StreamHandle();
  StreamHandle(StreamHandle&& other) noexcept;
  StreamHandle& operator=(StreamHandle&& other) noexcept;
  cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream that others wait for, or that times are taken between.
class EventHandle {
 public:
  explicit EventHandle(bool timing = false);
  ~EventHandle();
  EventHandle(EventHandle&& other) noexcept;
  EventHandle& operator=(EventHandle&& other) noexcept;
  cudaEvent_t get() const { return event_; }
  void record(const StreamHandle& stream);
  // Work queued on `stream` from now on waits for the recorded point; the host does not.
  void block(const StreamHandle& stream) const;
  // Both recorded and made with timing; waits for both.
  float milliseconds_since(const EventHandle& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace transxssm::cuda

#define TRANSXSSM_CUDA_CHECK(call) ::transxssm::cuda::check((call), #call, __FILE__, __LINE__)
