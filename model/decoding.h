// The work of one pipeline stage when text is generated: tokens pass forward through layers that keep keys
// and values, or the state, between calls. One row or several of equal length.
#pragma once

#include "model/network.h"
#include "parallel/pipeline.h"

namespace transxssm {

class DecodingWork : public StageWork {
 public:
  // Caches for `rows` sequences of up to network.positions() tokens.
  DecodingWork(Stream& stream, const Network& network, int64_t rows);

  // Before Pipeline::run_forward with one microbatch of [rows, ids.size(1)]: the next tokens of each row. ids
  // [B,T] i32.
  void begin(const Tensor& ids);
  // After it, on the last stage: logits [B,V] of the last token of each row.
  const Tensor& logits() const { return logits_; }
  int64_t cached() const { return cached_; }
  int64_t cache_bytes() const { return arena_.bytes(); }

  void forward(int microbatch, int slot, const Tensor& input, const Tensor& output) override;
  void backward_input(int, int, const Tensor&, const Tensor&) override;
  void backward_weight(int, int) override;
  void reduce_gradients() override {}

 private:
  Stream& stream_;
  const Network& network_;
  int64_t rows_;
  Arena arena_;
  std::vector<LayerCache> caches_;
  Tensor logits_;
  Tensor ids_;
  int64_t cached_ = 0;
};

}  // namespace transxssm
