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
  std::string uuid;                          // 16 bytes, the same in every process that sees this GPU
  int compute_major = 0, compute_minor = 0;  // sm_80: 8, 0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t shared_memory_bytes = 0;  // the most one block may use (opt-in)
  int64_t l2_bytes = 0;
};

// Number of devices this process may use; 0 where there is no driver or no device. DeviceError for any other
// failure.
int num_devices();
// DeviceError that says what to change where there is no such device, no driver, or a device older than the
// kernels, which are compiled for compute capability 8.0 and 9.0.
DeviceProperties device_properties(int index);

// Makes a device current for this thread. DeviceError as device_properties.
void use_device(int index);
// The same for a thread that has chosen none: the one that this process chose last.
void use_latest_device();

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
  void record(cudaStream_t stream);
  // Work queued on `stream` from now on waits for the recorded point; the host does not.
  void block(cudaStream_t stream) const;
  // True once the recorded point is reached. DeviceError where the work before it failed.
  bool reached() const;
  // Both recorded and made with timing; waits for both.
  float milliseconds_since(const EventHandle& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace transxssm::cuda

#define TRANSXSSM_CUDA_CHECK(call) ::transxssm::cuda::check((call), #call, __FILE__, __LINE__)
