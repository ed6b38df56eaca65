// State-space mixer: fused projection to C, B, X, dt; the scan with the unified rotation inside; output
// projection.
#pragma once

#include "kernels/ssd_scan.h"
#include "model/block.h"
#include "model/linear.h"
#include "model/parameter.h"
#include "model/rotary_table.h"
#include "model/shard.h"

namespace transxssm {

class SsdMixer {
 public:
  // Declares its parameters in `store`, under "model.layers.<layer>.ssd.".
  SsdMixer(const ModelConfig& config, const Shard& shard, int layer, ParameterStore& store,
           const RotaryTable& chunk_rotary);

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
    Tensor projected;     // [BT, 2GN + HP + H]: C, B, X, u
    Tensor y;             // [BT, HP]
    Tensor chunk_states;  // [B, chunks, H, P, N]
  };
  struct Parts {  // views of a [BT, 2GN + HP + H] buffer
    Tensor c, b, x, u;
  };
  Saved carve(Carver& saved, int64_t rows, int64_t tokens) const;
  Parts split(const Tensor& projected, int64_t rows, int64_t tokens) const;
  SsdInput scan_input(const TokenContext& tokens, const Tensor& projected) const;
  Linear projection() const { return {store_->fused_weight(c_, 4), store_->fused_gradient(c_, 4)}; }
  Linear output() const { return {(*store_)[out_].weight, (*store_)[out_].gradient}; }
  int64_t width() const { return 2 * groups_ * n_ + heads_ * p_ + heads_; }

  const ParameterStore* store_;
  RotaryTable rotary_;
  int64_t heads_, groups_, p_, n_, chunk_;
  int c_ = 0, a_log_ = 0, dt_bias_ = 0, d_skip_ = -1, out_ = 0;
};

}  // namespace transxssm
