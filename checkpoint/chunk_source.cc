#include "checkpoint/chunk_source.h"

#include <algorithm>

#include "runtime/stream.h"

namespace transxssm {

// A copy that nobody waited for must not find its buffer gone.
ChunkSource::~ChunkSource() {
  try {
    if (stream_ != nullptr) stream_->synchronize();
  } catch (const Error&) {  // the device failed: nothing is copied any more
  }
}

void ChunkSource::open(const CheckpointTensor& tensor) {
  data_ = tensor.data;
  stream_ = tensor.stream != nullptr && tensor.stream->queue() != nullptr ? tensor.stream : nullptr;
  at_ = 0;
  if (stream_ == nullptr) return;
  for (Arena& arena : buffers_)
    if (arena.bytes() == 0) arena = Arena(chunk_bytes_, stream_->device(), MemoryKind::pinned);
  request(0);
}

std::span<const std::byte> ChunkSource::next() {
  const int64_t begin = at_;
  const std::span<const std::byte> bytes = chunk(begin);
  at_ += static_cast<int64_t>(bytes.size());
  if (stream_ == nullptr || bytes.empty()) return bytes;
  stream_->synchronize();
  request(at_);
  return {buffer(begin), bytes.size()};
}

std::span<std::byte> ChunkSource::chunk(int64_t begin) const {
  return {static_cast<std::byte*>(data_.raw()) + begin,
          static_cast<size_t>(std::min(chunk_bytes_, data_.num_bytes() - begin))};
}

void ChunkSource::request(int64_t begin) {
  const std::span<std::byte> bytes = chunk(begin);
  const Shape shape = {static_cast<int64_t>(bytes.size())};
  transfer(*stream_, Tensor(bytes.data(), DType::u8, shape), Tensor(buffer(begin), DType::u8, shape));
}

std::byte* ChunkSource::buffer(int64_t begin) const {
  const Arena& arena = buffers_[static_cast<size_t>(begin / chunk_bytes_ % 2)];
  return static_cast<std::byte*>(arena.carver().take(DType::u8, {chunk_bytes_}).raw());
}

}  // namespace transxssm
