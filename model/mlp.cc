#include "model/mlp.h"

#include "kernels/swiglu.h"

namespace transxssm {

Mlp::Mlp(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
         ParameterStore& store)
    : store_(&store), dtype_(precision.activation), ff_(shard.ff.count) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".feed_forward.";
  const int64_t d = config.d_model;
  const Shape up_shape = {config.d_ff, d}, down_shape = {d, config.d_ff};
  auto column_parallel = [&](const char* name) {
    return ParameterSpec{.name = prefix + name + ".weight",
                         .global_shape = up_shape,
                         .box = unit_box(up_shape, 0, 1, shard.ff)};
  };
  const int gate = store.declare(column_parallel("gate_proj"));
  store.declare(column_parallel("up_proj"), true);
  const int down = store.declare({.name = prefix + "down_proj.weight",
                                  .global_shape = down_shape,
                                  .box = unit_box(down_shape, 1, 1, shard.ff)});
  LinearSpec gate_up{.first = gate, .count = 2}, down_product{.first = down, .add_bias = shard.tp_rank == 0};
  if (config.mlp_bias) {
    auto of_columns = [&](const char* name) {
      const Shape shape = {config.d_ff};
      return ParameterSpec{.name = prefix + name + ".bias",
                           .global_shape = shape,
                           .box = unit_box(shape, 0, 1, shard.ff),
                           .init = Init::zeros};
    };
    gate_up.bias = store.declare(of_columns("gate_proj"));
    store.declare(of_columns("up_proj"), true);
    down_product.bias = store.declare({.name = prefix + "down_proj.bias",
                                       .global_shape = {d},
                                       .box = whole_box({d}),
                                       .init = Init::zeros,
                                       .owner = shard.tp_rank == 0});
  }
  gate_up_ = store.declare_linear(gate_up);
  down_ = store.declare_linear(down_product);
}

Mlp::Pending Mlp::carve(Carver& pending, int64_t num_tokens) const {
  const Tensor d_gate_up = pending.take(dtype_, {num_tokens, 2 * ff_});
  return {d_gate_up, pending.take(dtype_, {num_tokens, ff_})};
}

void Mlp::forward(Stream& stream, const Tensor& x, const Tensor& out, Carver& saved) const {
  const int64_t num_tokens = x.size(0);
  const Tensor projected = saved.take(dtype_, {num_tokens, 2 * ff_});
  gate_up().forward(stream, x, projected);
  Scratch scratch(stream, num_tokens * ff_ * dtype_bytes(dtype_));
  const Tensor y = scratch.carver().take(dtype_, {num_tokens, ff_});
  run(stream, SwigluForward{projected.slice(1, 0, ff_), projected.slice(1, ff_, ff_), y});
  down().forward(stream, y, out);
}

void Mlp::backward_input(Stream& stream, const Tensor& d_out, const Tensor& dx, Carver& saved,
                         Carver& pending) const {
  const int64_t num_tokens = d_out.size(0);
  const Tensor projected = saved.take(dtype_, {num_tokens, 2 * ff_});
  const Pending p = carve(pending, num_tokens);
  down().backward_input(stream, d_out, p.y);  // the gradient of y, replaced by y itself below
  run(stream, SwigluBackward{.gate = projected.slice(1, 0, ff_),
                             .up = projected.slice(1, ff_, ff_),
                             .dy = p.y,
                             .d_gate = p.d_gate_up.slice(1, 0, ff_),
                             .d_up = p.d_gate_up.slice(1, ff_, ff_),
                             .y = p.y});
  gate_up().backward_input(stream, p.d_gate_up, dx);
}

void Mlp::backward_weight(Stream& stream, const Tensor& x, const Tensor& d_out, Carver& saved,
                          Carver& pending) const {
  const int64_t num_tokens = d_out.size(0);
  saved.take(dtype_, {num_tokens, 2 * ff_});
  const Pending p = carve(pending, num_tokens);
  down().backward_weight(stream, d_out, p.y);
  gate_up().backward_weight(stream, p.d_gate_up, x);
}

}  // namespace transxssm
