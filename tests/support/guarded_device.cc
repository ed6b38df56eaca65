#include "tests/support/guarded_device.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "tests/support/clock_mark.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr int64_t kPage = 4096;

size_t page_bytes(int64_t bytes) {
  return static_cast<size_t>((bytes + kPage - 1) / kPage * kPage);
}

struct GuardedGraph final : DeviceGraph {
  std::vector<std::function<void()>> work;
};

class GuardedQueue final : public DeviceQueue {
 public:
  explicit GuardedQueue(GuardedDevice& device) : device_(device) {}

  void copy(const void* from, void* to, int64_t bytes) override {
    add([=] { std::memmove(to, from, static_cast<size_t>(bytes)); });
    for (const void* memory : {from, static_cast<const void*>(to)})
      if (!device_.owns(memory) && !device_.is_pinned(memory)) return synchronize();
  }
  void zero(void* memory, int64_t bytes) override {
    add([=] { std::memset(memory, 0, static_cast<size_t>(bytes)); });
  }
  void wait_for(const DeviceQueue& other) override {
    refuse_to_record("wait for another queue");
    auto& queue = const_cast<GuardedQueue&>(static_cast<const GuardedQueue&>(other));
    add([&queue, until = queue.added_] { queue.drain(until); });
  }
  void synchronize() override {
    refuse_to_record("wait of the host");
    device_.count_wait();
    device_.run_open([this] { drain(added_); });
  }
  std::unique_ptr<DeviceMark> mark() override { return std::make_unique<ClockMark>(); }
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override {
    auto graph = std::make_unique<GuardedGraph>();
    const auto stop = [this](void*) { recording_ = nullptr; };
    recording_ = graph.get();
    const std::unique_ptr<void, decltype(stop)> stop_at_end(this, stop);
    work();
    return graph;
  }
  void launch(const DeviceGraph& graph) override {
    for (const auto& work : static_cast<const GuardedGraph&>(graph).work) add(work);
  }
  void* native() const override { return nullptr; }

  void add(std::function<void()> work) {
    if (recording_ != nullptr) return recording_->work.push_back(std::move(work));
    work_.push_back(std::move(work));
    ++added_;
  }

 private:
  void refuse_to_record(const char* what) const {
    if (recording_ != nullptr) throw DeviceError("a {} cannot be recorded", what);
  }
  void drain(int64_t until) {
    while (done_ < until) {
      const std::function<void()> work = std::move(work_.front());
      work_.pop_front();
      ++done_;
      work();
    }
  }

  GuardedDevice& device_;
  std::deque<std::function<void()>> work_;
  int64_t added_ = 0, done_ = 0;
  GuardedGraph* recording_ = nullptr;
};

}  // namespace

void submit(DeviceQueue& queue, std::function<void()> work) {
  static_cast<GuardedQueue&>(queue).add(std::move(work));
}

std::string GuardedDevice::describe(int index) {
  return fmt::format("guarded memory {}", index);
}

void* GuardedDevice::allocate(int index, int64_t bytes) {
  if (index < 0 || index >= count_) throw DeviceError("no device {}", index);
  std::lock_guard lock(mutex_);
  void* memory = mmap(nullptr, page_bytes(bytes), open_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw DeviceError("no memory for {} bytes", bytes);
  device_.emplace(static_cast<const std::byte*>(memory), bytes);
  return memory;
}

void GuardedDevice::release(int, void* memory) noexcept {
  std::lock_guard lock(mutex_);
  const auto found = device_.find(static_cast<const std::byte*>(memory));
  munmap(memory, page_bytes(found->second));
  device_.erase(found);
}

void* GuardedDevice::allocate_pinned(int64_t bytes) {
  void* memory = std::aligned_alloc(kPage, page_bytes(bytes));
  std::memset(memory, 0, page_bytes(bytes));
  std::lock_guard lock(mutex_);
  pinned_.emplace(static_cast<const std::byte*>(memory), bytes);
  return memory;
}

void GuardedDevice::release_pinned(void* memory) noexcept {
  std::lock_guard lock(mutex_);
  pinned_.erase(static_cast<const std::byte*>(memory));
  std::free(memory);
}

bool GuardedDevice::contains(const Ranges& ranges, const void* memory) {
  const auto* address = static_cast<const std::byte*>(memory);
  auto after = ranges.upper_bound(address);
  return after != ranges.begin() && address < (--after)->first + after->second;
}

bool GuardedDevice::owns(const void* memory) {
  std::lock_guard lock(mutex_);
  return contains(device_, memory);
}

bool GuardedDevice::is_pinned(const void* memory) {
  std::lock_guard lock(mutex_);
  return contains(pinned_, memory);
}

std::unique_ptr<DeviceQueue> GuardedDevice::make_queue(int index) {
  if (index < 0 || index >= count_) throw DeviceError("no device {}", index);
  return std::make_unique<GuardedQueue>(*this);
}

void GuardedDevice::count_wait() {
  std::lock_guard lock(mutex_);
  ++waits_;
}

void GuardedDevice::protect_all(bool open) {
  for (const auto& [start, bytes] : device_)
    mprotect(const_cast<std::byte*>(start), page_bytes(bytes), open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void GuardedDevice::run_open(const std::function<void()>& work) {
  struct Gate {
    explicit Gate(GuardedDevice& d) : device(d) { turn(1); }
    ~Gate() { turn(-1); }
    void turn(int by) {
      std::lock_guard lock(device.mutex_);
      device.open_ += by;
      if (device.open_ == (by > 0 ? 1 : 0)) device.protect_all(by > 0);
    }
    GuardedDevice& device;
  } gate(*this);
  work();
}

}  // namespace transxssm
