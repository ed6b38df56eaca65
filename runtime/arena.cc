#include "runtime/arena.h"

#include <cstdlib>
#include <cstring>

namespace transxssm {

Tensor Carver::take(DType dtype, const Shape& shape) {
  const int64_t bytes = shape.num_elements() * dtype_bytes(dtype);
  const int64_t offset = used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (begin_ == nullptr) return {};
  TRANSXSSM_CHECK(used_ <= capacity_, "arena of {} bytes is too small for {}", capacity_, shape.to_string());
  return Tensor(begin_ + offset, dtype, shape);
}

void Arena::Free::operator()(std::byte* p) const {
  std::free(p);
}

Arena::Arena(int64_t bytes) : bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
  if (bytes_ == 0) return;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(bytes_))));
  if (!memory_) throw DeviceError("cannot allocate {:.1f} MiB of host memory", double(bytes_) / (1 << 20));
  std::memset(memory_.get(), 0, static_cast<size_t>(bytes_));
}

}  // namespace transxssm
