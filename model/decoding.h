// The work of one pipeline stage when text is generated: tokens pass forward through layers that keep keys
// and values, or the state, between calls. One row or several of equal length.
#pragma once

#include "model/network.h"
#include "model/token_rows.h"
#include "parallel/pipeline.h"

namespace transxssm {

class DecodingWork : public StageWork {
 public:
  // Caches for `rows` sequences of up to network.positions() tokens.
  DecodingWork(Stream& stream, const Network& network, int64_t rows);

  // Before Pipeline::run_forward with one microbatch of [B,T]: the next tokens of rows first_row .. first_row
  // + B - 1. ids [B,T] i32, in host memory. Waits for the call before.
  void begin(const Tensor& ids, int64_t first_row = 0);
  // After it, on the last stage: logits [B,V] of the last token of each of those rows.
  Tensor logits() const { return logits_.slice(0, first_row_, num_rows_); }
  int64_t cache_bytes() const { return arena_.bytes(); }

  void forward(int microbatch, int slot, const Tensor& input, const Tensor& output) override;
  void backward_input(int, int, const Tensor&, const Tensor&) override;
  void backward_weight(int, int) override;
  void reduce_gradients() override {}

 private:
  Stream& stream_;
  const Network& network_;
  Arena arena_;
  std::vector<LayerCache> caches_;
  Tensor logits_;  // [B,V] f32
  Arena staging_;  // of the next tokens, on the host
  int64_t first_row_ = 0, num_rows_ = 0, num_tokens_ = 0;
  std::vector<int64_t> cached_;  // tokens of each row in the caches
};

}  // namespace transxssm
