// Where tensors live and operations run: the CPU, or one of the devices of a kind that a backend registers.
// This header names no vendor's types; runtime/cuda implements it for NVIDIA GPUs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace transxssm {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool is_cpu() const { return kind == DeviceKind::cpu; }
  bool operator==(const Device&) const = default;
  std::string to_string() const;  // "cpu", "cuda:1"
};

// A point in a device's queue of work.
class DeviceMark {
 public:
  virtual ~DeviceMark() = default;
  // Of the device's clock, from an earlier mark of the same device; waits for both.
  virtual double seconds_since(const DeviceMark& earlier) const = 0;
};

// Work of a queue that was recorded, to be queued again as a whole. Bound to the memory it names.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
};

// Work that a device does in order, behind the host's back.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  // Queued; host memory that is not pinned makes the call wait.
  virtual void copy(const void* from, void* to, int64_t bytes) = 0;
  virtual void zero(void* memory, int64_t bytes) = 0;
  // Work queued here from now on waits for all that is queued on `other` by now; the host does not.
  virtual void wait_for(const DeviceQueue& other) = 0;
  // Waits for all that was queued; throws DeviceError where some of it failed.
  virtual void synchronize() = 0;
  // The end of what is queued by now.
  virtual std::unique_ptr<DeviceMark> mark() = 0;
  // Calls `work` and records what it queues here in place of queueing it. A host that meanwhile waits for
  // this queue, marks it, makes it wait for another, allocates or frees device memory, or copies from or to
  // memory that is not pinned gets a DeviceError. Where `work` throws, the queue is as before.
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) = 0;
  // Queues what was recorded from a queue of the same device.
  virtual void launch(const DeviceGraph& graph) = 0;
  // The backend's own handle (a cudaStream_t).
  virtual void* native() const = 0;
};

// What runtime/ asks of a kind of device.
class DeviceRuntime {
 public:
  virtual ~DeviceRuntime() = default;
  // One line for people: name, memory, compute capability. DeviceError where there is no such device.
  virtual std::string describe(int index) = 0;
  virtual int num_devices() = 0;
  virtual int64_t free_bytes(int index) = 0;
  // Zero-filled. DeviceError that says how much is free where there is no room.
  virtual void* allocate(int index, int64_t bytes) = 0;
  virtual void release(int index, void* memory) noexcept = 0;
  // Host memory that devices copy from and to without the host's help; zero-filled.
  virtual void* allocate_pinned(int64_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;
  // True where `memory` lies in an allocation of a device, not in the host's memory, pinned or not.
  virtual bool owns(const void* memory) = 0;
  virtual std::unique_ptr<DeviceQueue> make_queue(int index) = 0;
};

// The backend registers itself once, at the program's start. Null takes it back.
void use_device_runtime(DeviceRuntime* runtime);
// True where a backend is registered and finds a device.
bool has_device();
// DeviceError where this build has no backend.
DeviceRuntime& device_runtime();

}  // namespace transxssm
