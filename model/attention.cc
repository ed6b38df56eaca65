#include "model/attention.h"

#include <cmath>

#include "kernels/copy.h"
#include "kernels/rope.h"
#include "runtime/error.h"

namespace transxssm {

AttentionMixer::AttentionMixer(const ModelConfig& config, const Shard& shard, const Precision& precision,
                               int layer, ParameterStore& store, const RotaryTable& rotary)
    : store_(&store),
      rotary_(rotary),
      dtype_(precision.activation),
      deterministic_(precision.deterministic),
      heads_(shard.heads.count),
      kv_heads_(shard.kv_heads.count),
      p_(config.head_width()),
      scale_(1.0 / std::sqrt(static_cast<double>(config.head_width()))),
      rope_(config.attention_rope) {
  if (dtype_ == DType::bf16 && p_ % 8 != 0)
    throw UsageError(
        "precision.compute: bf16 takes heads whose width is a multiple of 8, not {}; set it to f32", p_);
  const std::string prefix = "model.layers." + std::to_string(layer) + ".attn.";
  const int64_t d = config.d_model;
  auto column_parallel = [&](const char* name, int64_t heads, const UnitShare& share) {
    const Shape shape = {heads * p_, d};
    return ParameterSpec{.name = prefix + name + ".weight",
                         .global_shape = shape,
                         .box = unit_box(shape, 0, p_, share),
                         .gradient_sum_share = share.num_copies,
                         .owner = share.copy == 0};
  };
  const int q = store.declare(column_parallel("q_proj", config.num_heads, shard.heads));
  store.declare(column_parallel("k_proj", config.kv_heads(), shard.kv_heads), true);
  store.declare(column_parallel("v_proj", config.kv_heads(), shard.kv_heads), true);
  const Shape out_shape = {d, config.num_heads * p_};
  const int out = store.declare({.name = prefix + "o_proj.weight",
                                 .global_shape = out_shape,
                                 .box = unit_box(out_shape, 1, p_, shard.heads)});
  LinearSpec projection{.first = q, .count = 3}, output{.first = out, .add_bias = shard.tp_rank == 0};
  if (config.attention_bias) {
    auto of_heads = [&](const char* name, int64_t heads, const UnitShare& share) {
      const Shape shape = {heads * p_};
      return ParameterSpec{.name = prefix + name + ".bias",
                           .global_shape = shape,
                           .box = unit_box(shape, 0, p_, share),
                           .init = Init::zeros,
                           .gradient_sum_share = share.num_copies,
                           .owner = share.copy == 0};
    };
    projection.bias = store.declare(of_heads("q_proj", config.num_heads, shard.heads));
    store.declare(of_heads("k_proj", config.kv_heads(), shard.kv_heads), true);
    store.declare(of_heads("v_proj", config.kv_heads(), shard.kv_heads), true);
    output.bias = store.declare({.name = prefix + "o_proj.bias",
                                 .global_shape = {d},
                                 .box = whole_box({d}),
                                 .init = Init::zeros,
                                 .owner = shard.tp_rank == 0});
  }
  projection_ = store.declare_linear(projection);
  output_ = store.declare_linear(output);
}

AttentionMixer::Saved AttentionMixer::carve(Carver& saved, int64_t rows, int64_t tokens) const {
  Saved s;
  s.projected = saved.take(dtype_, {rows * tokens, width()});
  s.y = saved.take(dtype_, {rows * tokens, heads_ * p_});
  s.log_sum_exp = saved.take(DType::f32, {rows, heads_, tokens});
  return s;
}

void AttentionMixer::carve_pending(Carver& pending, int64_t rows, int64_t tokens) const {
  pending.take(dtype_, {rows * tokens, width()});
}

AttentionMixer::Parts AttentionMixer::split(const Tensor& projected, int64_t rows, int64_t tokens) const {
  const int64_t hp = heads_ * p_, kvp = kv_heads_ * p_;
  return {projected.slice(1, 0, hp).reshape({rows, tokens, heads_, p_}),
          projected.slice(1, hp, kvp).reshape({rows, tokens, kv_heads_, p_}),
          projected.slice(1, hp + kvp, kvp).reshape({rows, tokens, kv_heads_, p_})};
}

void AttentionMixer::rotate(Stream& stream, const TokenContext& tokens, const Tensor& projected,
                            bool backward) const {
  if (!rope_ && tokens.q_scale.empty()) return;
  auto rotate_heads = [&](int64_t first, int64_t heads, const Tensor& scale) {
    run(stream,
        Rotary{.x = projected.slice(1, first * p_, heads * p_).reshape({projected.size(0), heads, p_}),
               .cos = rotary_.cos,
               .sin = rotary_.sin,
               .position = tokens.position,
               .scale = scale,
               .direction = backward ? RotaryDirection::backward : RotaryDirection::forward});
  };
  if (tokens.q_scale.empty()) {  // q and k are neighbours: one pass
    rotate_heads(0, heads_ + kv_heads_, {});
  } else {  // without positions the table is the identity: only the scale of q remains
    rotate_heads(0, heads_, tokens.q_scale);
    if (rope_) rotate_heads(heads_, kv_heads_, {});
  }
}

void AttentionMixer::forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& out,
                             Carver& saved) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  projection().forward(stream, x, s.projected);
  rotate(stream, tokens, s.projected, false);
  const Parts parts = split(s.projected, tokens.rows, tokens.tokens);
  AttentionForward attention{.q = parts.q,
                             .k = parts.k,
                             .v = parts.v,
                             .first_key = tokens.first_key,
                             .out = s.y.reshape(parts.q.shape()),
                             .log_sum_exp = s.log_sum_exp,
                             .scale = scale_};
  if (tokens.cache != nullptr)
    attend_to_cache(stream, tokens, attention);
  else
    run(stream, attention);
  output().forward(stream, s.y, out);
}

// Row by row: each has its own number of tokens in the cache.
void AttentionMixer::attend_to_cache(Stream& stream, const TokenContext& tokens,
                                     const AttentionForward& attention) const {
  for (int64_t row = 0; row < tokens.rows; ++row) {
    auto of_row = [&](const Tensor& tensor) { return tensor.slice(0, row, 1); };
    const int64_t cached = tokens.cached[row], known = cached + tokens.tokens;
    const Tensor keys = of_row(tokens.cache->keys), values = of_row(tokens.cache->values);
    run(stream, Copy{of_row(attention.k), keys.slice(1, cached, tokens.tokens)});
    run(stream, Copy{of_row(attention.v), values.slice(1, cached, tokens.tokens)});
    run(stream, AttentionForward{.q = of_row(attention.q),
                                 .k = keys.slice(1, 0, known),
                                 .v = values.slice(1, 0, known),
                                 .out = of_row(attention.out),
                                 .query_offset = cached,
                                 .scale = scale_});
  }
}

void AttentionMixer::backward_input(Stream& stream, const TokenContext& tokens, const Tensor& d_out,
                                    const Tensor& dx, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = pending.take(dtype_, s.projected.shape());
  Scratch scratch(stream, s.y.num_bytes());
  const Tensor dy = scratch.carver().take(dtype_, s.y.shape());
  output().backward_input(stream, d_out, dy);

  const Parts parts = split(s.projected, tokens.rows, tokens.tokens);
  const Parts d = split(d_projected, tokens.rows, tokens.tokens);
  run(stream, AttentionBackward{.q = parts.q,
                                .k = parts.k,
                                .v = parts.v,
                                .first_key = tokens.first_key,
                                .out = s.y.reshape(parts.q.shape()),
                                .log_sum_exp = s.log_sum_exp,
                                .d_out = dy.reshape(parts.q.shape()),
                                .dq = d.q,
                                .dk = d.k,
                                .dv = d.v,
                                .scale = scale_,
                                .deterministic = deterministic_});
  rotate(stream, tokens, d_projected, true);
  projection().backward_input(stream, d_projected, dx);
}

void AttentionMixer::backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& x,
                                     const Tensor& d_out, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = pending.take(dtype_, s.projected.shape());
  output().backward_weight(stream, d_out, s.y);
  projection().backward_weight(stream, d_projected, x);
}

LayerCache AttentionMixer::make_cache(Carver& carver, int64_t rows, int64_t capacity) const {
  const Shape shape = {rows, capacity, kv_heads_, p_};
  const Tensor keys = carver.take(dtype_, shape);
  return {.keys = keys, .values = carver.take(dtype_, shape)};
}

}  // namespace transxssm
