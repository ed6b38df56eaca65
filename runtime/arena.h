// Owns memory: one allocation made before step 1, handed out in order as Tensors. A layout is written once as
// a function of a Carver; a Carver without memory only counts, so the bytes are known before they are taken.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/device.h"
#include "runtime/sanitizers.h"
#include "runtime/tensor.h"

namespace transxssm {

inline constexpr int64_t kAlignment = 64;  // of every tensor carved from an arena
// Between tensors, where the address sanitizer watches: forbidden bytes, so that a kernel that runs past the
// end of one tensor does not silently reach the next.
inline constexpr int64_t kRedZone = kMemoryIsChecked ? 64 : 0;

// What a tensor takes of an arena.
int64_t carved_bytes(DType dtype, const Shape& shape);

class Carver {
 public:
  Carver() = default;  // counts only: take() returns empty tensors
  // `on_host`: the CPU reads and writes this memory, and no device may do so later than it.
  Carver(std::byte* begin, int64_t bytes, bool on_host)
      : begin_(begin), capacity_(bytes), on_host_(on_host) {}
  // Next aligned tensor, not initialised. On the host its bytes are allowed, those up to the next one
  // forbidden.
  Tensor take(DType dtype, const Shape& shape);
  int64_t used() const { return used_; }  // bytes so far, a multiple of kAlignment
  bool on_host() const { return on_host_; }

 private:
  std::byte* begin_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  bool on_host_ = false;
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
  Carver carver() const { return Carver(memory_.get(), bytes_ + kRedZone, on_host()); }
  // On the host: nobody may touch it until a carver takes from it again.
  void forbid() const;

 private:
  bool on_host() const { return memory_.get_deleter().device.is_cpu(); }
  struct Free {
    void operator()(std::byte* p) const;
    Device device;
    MemoryKind kind;
  };
  std::unique_ptr<std::byte, Free> memory_{nullptr, {{}, MemoryKind::device}};
  int64_t bytes_ = 0;
};

}  // namespace transxssm
