#include "runtime/stream.h"

#include <cstring>

namespace transxssm {

Stream::Stream(int num_threads) : Stream(Device{}, num_threads) {}

Stream::Stream(Device device, int num_threads) : device_(device), num_threads_(std::max(1, num_threads)) {
  omp_set_num_threads(num_threads_);
  if (!device_.is_cpu()) queue_ = device_runtime().make_queue(device_.index);
}

int64_t Stream::scratch_bytes() const {
  int64_t bytes = 0;
  for (const Arena& block : blocks_) bytes += block.bytes();
  return bytes;
}

void Stream::synchronize() const {
  if (queue_) queue_->synchronize();
}

void transfer(Stream& stream, const Tensor& from, const Tensor& to) {
  TRANSXSSM_CHECK(from.dtype() == to.dtype() && from.num_elements() == to.num_elements() &&
                      from.is_contiguous() && to.is_contiguous(),
                  "transfer of {} {} to {} {}", dtype_name(from.dtype()), from.shape().to_string(),
                  dtype_name(to.dtype()), to.shape().to_string());
  if (from.num_bytes() == 0) return;
  if (DeviceQueue* queue = stream.queue()) return queue->copy(from.raw(), to.raw(), from.num_bytes());
  std::memmove(to.raw(), from.raw(), static_cast<size_t>(from.num_bytes()));
}

void zero(Stream& stream, const Tensor& tensor) {
  if (tensor.num_bytes() == 0) return;
  TRANSXSSM_CHECK(tensor.is_contiguous(), "zero of {}", tensor.shape().to_string());
  if (DeviceQueue* queue = stream.queue()) return queue->zero(tensor.raw(), tensor.num_bytes());
  auto* bytes = static_cast<std::byte*>(tensor.raw());
  parallel_ranges(stream, tensor.num_bytes(), 16384, [&](int64_t begin, int64_t end) {
    std::memset(bytes + begin, 0, static_cast<size_t>(end - begin));
  });
}

Scratch::Scratch(Stream& stream, int64_t bytes) : stream_(stream), bytes_(bytes) {
  if (stream.open_ == stream.blocks_.size()) stream.blocks_.emplace_back();
  Arena& block = stream.blocks_[stream.open_];
  if (block.bytes() < bytes || block.bytes() == 0) {
    stream.synchronize();  // what is queued may still use the old block
    block = {};
    block = Arena(std::max<int64_t>(bytes, kAlignment), stream.device_);
  }
  ++stream.open_;
  carver_ = block.carver();
}

Scratch::~Scratch() {
  --stream_.open_;
  stream_.blocks_[stream_.open_].forbid();
}

}  // namespace transxssm
