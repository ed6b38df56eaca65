#include "runtime/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace transxssm {
namespace {

thread_local ArenaUse use;

// Large arenas in pages of 2 MiB where the kernel has them: kernels walk over far more 4 KiB pages than a
// core keeps translations of, and under a hypervisor each miss costs two walks.
constexpr int64_t kHugePage = 2 << 20;

std::byte* allocate_on_host(int64_t bytes) {
  const int64_t alignment = bytes < kHugePage ? kAlignment : kHugePage;
  const auto padded = static_cast<size_t>((bytes + alignment - 1) / alignment * alignment);
  void* memory = std::aligned_alloc(static_cast<size_t>(alignment), padded);
  if (memory == nullptr)
    throw DeviceError("cannot allocate {:.1f} MiB of host memory", double(bytes) / (1 << 20));
  if (alignment == kHugePage) madvise(memory, padded, MADV_HUGEPAGE);  // advice: it may fail
  std::memset(memory, 0, padded);
  return static_cast<std::byte*>(memory);
}

}  // namespace

ArenaUse arena_use() {
  return use;
}

int64_t carved_bytes(DType dtype, const Shape& shape) {
  const int64_t bytes = shape.num_elements() * dtype_bytes(dtype);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment + kRedZone;
}

Tensor Carver::take(DType dtype, const Shape& shape) {
  const int64_t offset = used_;
  used_ += carved_bytes(dtype, shape);
  if (begin_ == nullptr) return {};
  TRANSXSSM_CHECK(used_ <= capacity_, "arena of {} bytes is too small for {}", capacity_, shape.to_string());
  if (on_host_) {
    const int64_t end = offset + shape.num_elements() * dtype_bytes(dtype);
    allow_memory(begin_ + offset, end - offset);
    forbid_memory(begin_ + end, used_ - end);
  }
  return Tensor(begin_ + offset, dtype, shape);
}

void Arena::Free::operator()(std::byte* p) const {
  if (device.is_cpu()) return std::free(p);
  kind == MemoryKind::pinned ? device_runtime().release_pinned(p) : device_runtime().release(device.index, p);
}

Arena::Arena(int64_t bytes, Device device, MemoryKind kind)
    : memory_(nullptr, {device, kind}), bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
  if (bytes_ == 0) return;
  ++use.arenas, use.bytes += bytes_;
  const int64_t all = bytes_ + kRedZone;
  if (!device.is_cpu()) {
    memory_.reset(static_cast<std::byte*>(kind == MemoryKind::pinned
                                              ? device_runtime().allocate_pinned(all)
                                              : device_runtime().allocate(device.index, all)));
    return;
  }
  memory_.reset(allocate_on_host(all));
  forbid();
}

void Arena::forbid() const {
  if (on_host() && bytes_ > 0) forbid_memory(memory_.get(), bytes_ + kRedZone);
}

}  // namespace transxssm
