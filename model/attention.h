// Attention mixer: fused projection to q, k, v; the unified rotation of q and k; causal attention; output
// projection.
#pragma once

#include "kernels/attention.h"
#include "model/block.h"
#include "model/parameter.h"
#include "model/precision.h"
#include "model/rotary_table.h"
#include "model/shard.h"

namespace transxssm {

class AttentionMixer {
 public:
  static constexpr const char* kName = "attention";  // in traces
  // Declares its parameters in `store`, under "model.layers.<layer>.attn.". `rotary` covers every position.
  AttentionMixer(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
                 ParameterStore& store, const RotaryTable& rotary);

  // out is this rank's part of the sum over tp.
  void forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& out,
               Carver& saved) const;
  // dx is this rank's part of the sum over tp.
  void backward_input(Stream& stream, const TokenContext& tokens, const Tensor& d_out, const Tensor& dx,
                      Carver& saved, Carver& pending) const;
  void backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& d_out,
                       Carver& saved, Carver& pending) const;
  void carve_saved(Carver& saved, int64_t rows, int64_t tokens) const { carve(saved, rows, tokens); }
  void carve_pending(Carver& pending, int64_t rows, int64_t tokens) const;
  LayerCache make_cache(Carver& carver, int64_t rows, int64_t capacity) const;

 private:
  struct Saved {
    Tensor projected;    // [BT, (H + 2KV) P]: q, k (both rotated), v
    Tensor y;            // [BT, HP]
    Tensor log_sum_exp;  // [B,H,T]
  };
  struct Parts {  // views of a [BT, (H + 2KV) P] buffer
    Tensor q, k, v;
  };
  Saved carve(Carver& saved, int64_t rows, int64_t tokens) const;
  Parts split(const Tensor& projected, int64_t rows, int64_t tokens) const;
  void rotate(Stream& stream, const TokenContext& tokens, const Tensor& projected, bool backward) const;
  void attend_to_cache(Stream& stream, const TokenContext& tokens, const AttentionForward& attention) const;
  Linear projection() const { return store_->linear(projection_); }
  Linear output() const { return store_->linear(output_); }
  int64_t width() const { return (heads_ + 2 * kv_heads_) * p_; }

  const ParameterStore* store_;
  RotaryTable rotary_;
  DType dtype_;
  bool deterministic_;
  int64_t heads_, kv_heads_, p_;
  double scale_;
  bool rope_;
  int projection_ = 0, output_ = 0;
};

}  // namespace transxssm
