// SwiGLU feed-forward: down(silu(gate(x)) * up(x)); gate and up are one product.
#pragma once

#include "model/parameter.h"
#include "model/precision.h"
#include "model/shard.h"

namespace transxssm {

class Mlp {
 public:
  static constexpr const char* kName = "mlp";  // in traces
  // Declares its parameters in `store`, under "model.layers.<layer>.feed_forward.".
  Mlp(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
      ParameterStore& store);

  // x, out [BT,D]; out is this rank's part of the sum over tp.
  void forward(Stream& stream, const Tensor& x, const Tensor& out, Carver& saved) const;
  // dx is this rank's part of the sum over tp.
  void backward_input(Stream& stream, const Tensor& d_out, const Tensor& dx, Carver& saved,
                      Carver& pending) const;
  void backward_weight(Stream& stream, const Tensor& x, const Tensor& d_out, Carver& saved,
                       Carver& pending) const;
  void carve_saved(Carver& saved, int64_t num_tokens) const { saved.take(dtype_, {num_tokens, 2 * ff_}); }
  void carve_pending(Carver& pending, int64_t num_tokens) const { carve(pending, num_tokens); }

 private:
  struct Pending {
    Tensor d_gate_up;  // [BT, 2F]
    Tensor y;          // [BT, F] silu(gate) * up, computed again
  };
  Pending carve(Carver& pending, int64_t num_tokens) const;
  Linear gate_up() const { return store_->linear(gate_up_); }
  Linear down() const { return store_->linear(down_); }

  const ParameterStore* store_;
  DType dtype_;
  int64_t ff_;
  int gate_up_ = 0, down_ = 0;
};

}  // namespace transxssm
