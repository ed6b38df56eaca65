#include "runtime/stream.h"

namespace transxssm {

Stream::Stream(int num_threads) : num_threads_(std::max(1, num_threads)) {
  omp_set_num_threads(num_threads_);
}

int64_t Stream::scratch_bytes() const {
  int64_t bytes = 0;
  for (const Arena& block : blocks_) bytes += block.bytes();
  return bytes;
}

Scratch::Scratch(Stream& stream, int64_t bytes) : stream_(stream) {
  if (stream.open_ == stream.blocks_.size()) stream.blocks_.emplace_back();
  Arena& block = stream.blocks_[stream.open_];
  if (block.bytes() < bytes || block.bytes() == 0) block = Arena(std::max<int64_t>(bytes, kAlignment));
  ++stream.open_;
  carver_ = block.carver();
}

}  // namespace transxssm
