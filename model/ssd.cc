#include "model/ssd.h"

namespace transxssm {

SsdMixer::SsdMixer(const ModelConfig& config, const Shard& shard, int layer, ParameterStore& store,
                   const RotaryTable& chunk_rotary)
    : store_(&store),
      rotary_(chunk_rotary),
      heads_(shard.heads.count),
      groups_(shard.groups.count),
      p_(config.head_dim()),
      n_(config.d_state),
      chunk_(config.chunk) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".ssd.";
  const int64_t d = config.d_model;
  // `units` blocks of `width` rows, cut by unit.
  auto column_parallel = [&](const char* name, int64_t units, int64_t width, const UnitShare& share) {
    const Shape shape = {units * width, d};
    return ParameterSpec{.name = prefix + name + ".weight",
                         .global_shape = shape,
                         .box = unit_box(shape, 0, width, share),
                         .gradient_sum_share = share.num_copies,
                         .owner = share.copy == 0};
  };
  auto per_head = [&](const char* name, Init init) {
    const Shape shape = {config.num_heads};
    return ParameterSpec{.name = prefix + name,
                         .global_shape = shape,
                         .box = unit_box(shape, 0, 1, shard.heads),
                         .init = init};
  };
  c_ = store.declare(column_parallel("c_proj", config.groups(), n_, shard.groups));
  store.declare(column_parallel("b_proj", config.groups(), n_, shard.groups), true);
  store.declare(column_parallel("x_proj", config.num_heads, p_, shard.heads), true);
  store.declare(column_parallel("dt_proj", config.num_heads, 1, shard.heads), true);
  a_log_ = store.declare(per_head("A_log", Init::a_log));
  dt_bias_ = store.declare(per_head("dt_bias", Init::dt_bias));
  if (config.d_skip) d_skip_ = store.declare(per_head("D", Init::ones));
  const Shape out_shape = {d, config.num_heads * p_};
  out_ = store.declare({.name = prefix + "out_proj.weight",
                        .global_shape = out_shape,
                        .box = unit_box(out_shape, 1, p_, shard.heads)});
}

SsdMixer::Saved SsdMixer::carve(Carver& saved, int64_t rows, int64_t tokens) const {
  Saved s;
  s.projected = saved.take(DType::f32, {rows * tokens, width()});
  s.y = saved.take(DType::f32, {rows * tokens, heads_ * p_});
  s.chunk_states = saved.take(DType::f32, {rows, ssd_num_chunks(tokens, chunk_), heads_, p_, n_});
  return s;
}

void SsdMixer::carve_pending(Carver& pending, int64_t rows, int64_t tokens) const {
  pending.take(DType::f32, {rows * tokens, width()});
}

SsdMixer::Parts SsdMixer::split(const Tensor& projected, int64_t rows, int64_t tokens) const {
  const int64_t gn = groups_ * n_, hp = heads_ * p_;
  return {projected.slice(1, 0, gn).reshape({rows, tokens, groups_, n_}),
          projected.slice(1, gn, gn).reshape({rows, tokens, groups_, n_}),
          projected.slice(1, 2 * gn, hp).reshape({rows, tokens, heads_, p_}),
          projected.slice(1, 2 * gn + hp, heads_).reshape({rows, tokens, heads_})};
}

SsdInput SsdMixer::scan_input(const TokenContext& tokens, const Tensor& projected) const {
  const Parts parts = split(projected, tokens.rows, tokens.tokens);
  SsdInput in{.x = parts.x, .b = parts.b, .c = parts.c, .u = parts.u};
  in.dt_bias = (*store_)[dt_bias_].weight;
  in.a_log = (*store_)[a_log_].weight;
  if (d_skip_ >= 0) in.d_skip = (*store_)[d_skip_].weight;
  in.cos = rotary_.cos;
  in.sin = rotary_.sin;
  in.start = tokens.start;
  in.chunk = chunk_;
  return in;
}

void SsdMixer::forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& out,
                       Carver& saved) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  projection().forward(stream, x, s.projected);
  SsdForward scan{.in = scan_input(tokens, s.projected),
                  .y = s.y.reshape({tokens.rows, tokens.tokens, heads_, p_}),
                  .chunk_states = s.chunk_states};
  if (tokens.cache != nullptr) {
    scan.in.initial_state = scan.final_state = tokens.cache->state;
    scan.chunk_states = {};
  }
  run(stream, scan);
  output().forward(stream, s.y, out);
}

void SsdMixer::backward_input(Stream& stream, const TokenContext& tokens, const Tensor& d_out,
                              const Tensor& dx, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = pending.take(DType::f32, s.projected.shape());
  Scratch scratch(stream, s.y.num_bytes());
  const Tensor dy = scratch.carver().take(DType::f32, s.y.shape());
  output().backward_input(stream, d_out, dy);

  const Parts d = split(d_projected, tokens.rows, tokens.tokens);
  SsdBackward scan{.in = scan_input(tokens, s.projected),
                   .chunk_states = s.chunk_states,
                   .dy = dy.reshape({tokens.rows, tokens.tokens, heads_, p_}),
                   .dx = d.x,
                   .db = d.b,
                   .dc = d.c,
                   .du = d.u,
                   .d_dt_bias = (*store_)[dt_bias_].gradient,
                   .d_a_log = (*store_)[a_log_].gradient};
  if (d_skip_ >= 0) scan.d_d_skip = (*store_)[d_skip_].gradient;
  run(stream, scan);
  projection().backward_input(stream, d_projected, dx);
}

void SsdMixer::backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& x,
                               const Tensor& d_out, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = pending.take(DType::f32, s.projected.shape());
  output().backward_weight(stream, d_out, s.y);
  projection().backward_weight(stream, d_projected, x);
}

LayerCache SsdMixer::make_cache(Carver& carver, int64_t rows, int64_t) const {
  return {.state = carver.take(DType::f32, {rows, heads_, p_, n_})};
}

}  // namespace transxssm
