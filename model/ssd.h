// State-space mixer, one for every kind: fused projection to z, C, B, X, dt; where configured a short
// convolution over C, B, X; the scan, with the unified rotation inside where configured; where configured a
// RMSNorm per state group, gated by silu(z); output projection.
#pragma once

#include "kernels/ssd_scan.h"
#include "model/block.h"
#include "model/parameter.h"
#include "model/precision.h"
#include "model/rotary_table.h"
#include "model/shard.h"
#include "parallel/communicator.h"

namespace transxssm {

class SsdMixer {
 public:
  static constexpr const char* kName = "ssd";  // in traces
  // Declares its parameters in `store`, under "model.layers.<layer>.ssd.". `group_sharers`: the tp ranks that
  // split a state group between them, over which a gated norm sums its squares.
  SsdMixer(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
           ParameterStore& store, const RotaryTable& chunk_rotary, Communicator& group_sharers);

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
    Tensor projected;     // [BT, (HP +) 2GN + HP]: z, C, B, X
    Tensor u;             // [BT, H] f32
    Tensor convolved;     // [BT, 2GN + HP]: C, B, X; empty without convolution
    Tensor chunk_states;  // [B, chunks, H, P, N]
    Tensor y;             // [BT, HP]
    Tensor squares;       // [BT, G] of gated y; empty without gate
    Tensor gated;         // [BT, HP]; empty without gate
  };
  struct Parts {  // views
    Tensor c, b, x;
  };
  Saved carve(Carver& saved, int64_t rows, int64_t tokens) const;
  // Columns of a [BT, width()] buffer, or of Saved::projected.
  Tensor z_columns(const Tensor& projected) const { return projected.slice(1, 0, inner()); }
  Tensor cbx_columns(const Tensor& projected) const { return projected.slice(1, z_width(), cbx_width()); }
  Tensor u_columns(const Tensor& projected) const {
    return projected.slice(1, z_width() + cbx_width(), heads_);
  }
  Parts split(const Tensor& cbx, const TokenContext& tokens) const;
  SsdInput scan_input(const TokenContext& tokens, const Saved& saved) const;
  Tensor take_d_projected(Carver& pending, int64_t num_tokens) const;  // [BT, width()] z, C, B, X, u
  Linear projection() const { return store_->linear(projection_); }
  Linear output() const { return store_->linear(output_); }
  void sum_over_sharers(const Tensor& values) const;

  int64_t inner() const { return heads_ * p_; }
  int64_t z_width() const { return gate_ ? inner() : 0; }
  int64_t cbx_width() const { return 2 * groups_ * n_ + inner(); }
  int64_t width() const { return z_width() + cbx_width() + heads_; }

  const ParameterStore* store_;
  RotaryTable rotary_;  // empty: no rotation
  DType dtype_;
  Communicator* group_sharers_;
  int64_t heads_, groups_, p_, n_, chunk_;
  int64_t group_width_;  // channels of a whole state group, on all ranks together
  double eps_;
  bool conv_, gate_;
  int64_t conv_kernel_;
  int projection_ = 0;                             // of all, backwards
  int rounded_projection_ = 0, u_projection_ = 0;  // its two parts, forwards: u keeps f32
  int output_ = 0;
  int conv_weight_ = -1, conv_bias_ = -1;  // of C; B's and X's follow
  int a_log_ = 0, dt_bias_ = 0, d_skip_ = -1, norm_ = -1;
};

}  // namespace transxssm
