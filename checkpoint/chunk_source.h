// The bytes of tensors chunk by chunk, wherever they lie. From a device they come through two pinned buffers:
// the next chunk travels while the caller works on this one.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "checkpoint/checkpoint.h"
#include "runtime/arena.h"

namespace transxssm {

class ChunkSource {
 public:
  explicit ChunkSource(int64_t chunk_bytes) : chunk_bytes_(chunk_bytes) {}
  ~ChunkSource();
  ChunkSource(const ChunkSource&) = delete;
  ChunkSource& operator=(const ChunkSource&) = delete;

  // The tensor that next() reads from now on; it must stay as it is.
  void open(const CheckpointTensor& tensor);
  // The next chunk, the last one shorter; empty at the end. Valid until the call after the next one.
  std::span<const std::byte> next();

 private:
  std::span<std::byte> chunk(int64_t begin) const;  // of the tensor's own memory
  void request(int64_t begin);                      // queues the copy of a chunk from the device
  std::byte* buffer(int64_t begin) const;           // where it is copied to

  int64_t chunk_bytes_;
  std::array<Arena, 2> buffers_;
  Tensor data_;
  Stream* stream_ = nullptr;
  int64_t at_ = 0;
};

}  // namespace transxssm
