// Owns memory: one allocation made before step 1, handed out in order as Tensors. A layout is written once as
// a function of a Carver; a Carver without memory only counts, so the bytes are known before they are taken.
#pragma once

#include <cstddef>
#include <memory>

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

class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t bytes);  // zero-filled; throws DeviceError naming the bytes where there is no room
  int64_t bytes() const { return bytes_; }
  Carver carver() const { return Carver(memory_.get(), bytes_); }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace transxssm
