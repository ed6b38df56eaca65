// What the network reads of rows of tokens: the batch, and what layers derive from its positions; on the host
// where it is written, and on the device where it is read.
#pragma once

#include "model/config.h"
#include "runtime/data/batch.h"
#include "runtime/stream.h"

namespace transxssm {

struct TokenRows {
  Batch batch;
  // Of each token, as TokenContext (model/block.h) has them.
  Tensor start;      // [B,T] u8
  Tensor first_key;  // [B,T] i32
  Tensor q_scale;    // [B,T] f32, or empty
  Tensor c_scale;    // [B,T] f32, or empty

  static TokenRows carve(Carver& carver, const ModelConfig& config, int64_t rows, int64_t tokens);
  static int64_t bytes(const ModelConfig& config, int64_t rows, int64_t tokens);
  // From batch.position, in host memory.
  void derive(const ModelConfig& config) const;
  TokenRows row_range(int64_t begin, int64_t count) const;
};

// Rows that the host writes step after step, and their copy on the stream's device (on the CPU the same
// memory).
class TokenFeed {
 public:
  TokenFeed(Stream& stream, const ModelConfig& config, int64_t rows, int64_t tokens);

  // To be filled while nothing that upload() queued is under way.
  Batch& host() { return host_.batch; }
  const Batch& host() const { return host_.batch; }
  // Derives what depends on positions and queues one copy of everything.
  void upload();
  // Rows [begin, begin + count) where the network reads them. After upload(): without first_key where every
  // row is one document, which lets attention take faster ways.
  TokenRows rows(int64_t begin, int64_t count) const;

 private:
  Stream& stream_;
  ModelConfig config_;
  Arena host_arena_, device_arena_;
  TokenRows host_, device_;
};

}  // namespace transxssm
