// A device in host memory that the host cannot touch: its pages are closed but while queued work runs, and
// work runs only when the host waits for it. A host that reads or writes device memory ends with a
// segmentation fault; one that forgets to wait sees stale values. GuardedOperations computes with the CPU's
// operations, so that results on this device must be those of the CPU to the bit.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "runtime/device.h"

namespace transxssm {

class GuardedDevice final : public DeviceRuntime {
 public:
  explicit GuardedDevice(int count = 1) : count_(count) {}

  std::string describe(int index) override;
  int num_devices() override { return count_; }
  int64_t free_bytes(int) override { return int64_t{1} << 34; }
  void* allocate(int index, int64_t bytes) override;
  void release(int index, void* memory) noexcept override;
  void* allocate_pinned(int64_t bytes) override;
  void release_pinned(void* memory) noexcept override;
  bool owns(const void* memory) override;
  std::unique_ptr<DeviceQueue> make_queue(int index) override;

  bool is_pinned(const void* memory);
  int64_t waits() const { return waits_; }  // of the host, in all queues
  // Opens the memory of all devices while `work` runs. Ranks may be threads: it closes after the last one.
  void run_open(const std::function<void()>& work);
  void count_wait();

 private:
  using Ranges = std::map<const std::byte*, int64_t>;  // start and bytes
  static bool contains(const Ranges& ranges, const void* memory);
  void protect_all(bool open);

  int count_;
  std::mutex mutex_;
  Ranges device_, pinned_;
  int open_ = 0;
  int64_t waits_ = 0;
};

// Queues a function behind the work of a queue that a GuardedDevice made.
void submit(DeviceQueue& queue, std::function<void()> work);

// Registers a guarded device for as long as it lives.
class WithGuardedDevice {
 public:
  explicit WithGuardedDevice(int count = 1) : device(count) { use_device_runtime(&device); }
  ~WithGuardedDevice() { use_device_runtime(nullptr); }
  WithGuardedDevice(const WithGuardedDevice&) = delete;
  WithGuardedDevice& operator=(const WithGuardedDevice&) = delete;
  GuardedDevice device;
};

}  // namespace transxssm
