// Owns memory: one allocation made before step 1, handed out in order as Tensors. A layout is written once as
// a function of a Carver; a Carver without memory only counts, so the bytes are known before they are taken.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace transxssm {

inline constexpr int64_t kAlignment = 64;  // of every tensor carved from an arena

class Carver {
 public:
  Carver() = default;  // counts only: take() returns empty tensors
  Carver(std::byte* begin, int64_t bytes) : begin_(begin), capacity_(bytes) {}
  Tensor take(DType dtype, const Shape& shape);  // next aligned tensor, not initialised
  int64_t used() const { return used_; }         // bytes so far, a multiple of kAlignment

 private:
  std::byte* begin_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

// Where an arena's memory is: a device's own, or host memory that devices can copy without the host's help.
enum class MemoryKind : uint8_t { device, pinned };

// Of the calling thread's arenas, whether they live or not: how many it has made, and their bytes.
struct ArenaUse {
  int64_t arenas = 0;
  int64_t bytes = 0;
};
ArenaUse arena_use();

class Arena {
 public:
  Arena() = default;
  // Zero-filled; throws DeviceError naming the bytes where there is no room. Pinned memory is the host's;
  // without a device it is ordinary memory.
  explicit Arena(int64_t bytes, Device device = {}, MemoryKind kind = MemoryKind::device);
  int64_t bytes() const { return bytes_; }
  Carver carver() const { return Carver(memory_.get(), bytes_); }

 private:
  struct Free {
    void operator()(std::byte* p) const;
    Device device;
    MemoryKind kind;
  };
  std::unique_ptr<std::byte, Free> memory_{nullptr, {{}, MemoryKind::device}};
  int64_t bytes_ = 0;
};

}  // namespace transxssm
