#include "model/ssd.h"

#include <array>
#include <cmath>

#include "kernels/conv1d.h"
#include "kernels/copy.h"
#include "kernels/gated_norm.h"

namespace transxssm {

SsdMixer::SsdMixer(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
                   ParameterStore& store, const RotaryTable& chunk_rotary, Communicator& group_sharers)
    : store_(&store),
      rotary_(config.ssd_position == SsdPosition::rope ? chunk_rotary : RotaryTable{}),
      dtype_(precision.activation),
      group_sharers_(&group_sharers),
      heads_(shard.ssd_heads.count),
      groups_(shard.groups.count),
      p_(config.head_width()),
      n_(config.d_state),
      chunk_(config.chunk),
      group_width_(config.ssd_heads() / config.groups() * config.head_width()),
      eps_(config.norm_eps),
      conv_(config.ssd_position == SsdPosition::conv1d),
      gate_(config.ssd_gate),
      conv_kernel_(config.conv_kernel) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".ssd.";
  const int64_t d = config.d_model, all_heads = config.ssd_heads(), all_groups = config.groups();
  // `units` blocks of `rows` rows, cut by unit.
  auto cut_by = [&](const std::string& name, int64_t units, int64_t rows, int64_t columns,
                    const UnitShare& share, Init init = Init::normal) {
    const Shape shape = columns > 0 ? Shape{units * rows, columns} : Shape{units * rows};
    return ParameterSpec{.name = prefix + name,
                         .global_shape = shape,
                         .box = unit_box(shape, 0, rows, share),
                         .init = init,
                         .init_range = 1 / std::sqrt(static_cast<double>(config.conv_kernel)),
                         .gradient_sum_share = share.num_copies,
                         .owner = share.copy == 0};
  };
  // The order of the columns of the fused projection.
  if (gate_) store.declare(cut_by("z_proj.weight", all_heads, p_, d, shard.ssd_heads));
  const int c = store.declare(cut_by("c_proj.weight", all_groups, n_, d, shard.groups), gate_);
  store.declare(cut_by("b_proj.weight", all_groups, n_, d, shard.groups), true);
  store.declare(cut_by("x_proj.weight", all_heads, p_, d, shard.ssd_heads), true);
  store.declare(cut_by("dt_proj.weight", all_heads, 1, d, shard.ssd_heads), true);
  LinearSpec projection{.first = gate_ ? c - 1 : c, .count = gate_ ? 5 : 4, .forward = false};
  projection_ = store.declare_linear(projection);
  projection.forward = true, projection.backward = false;
  projection.num_rows = z_width() + cbx_width();
  rounded_projection_ = store.declare_linear(projection);
  projection.first_row = projection.num_rows;
  projection.num_rows = heads_;
  u_projection_ = store.declare_linear(projection);
  if (conv_) {
    for (const char* kind : {"weight", "bias"}) {
      const bool bias = kind[0] == 'b';
      const int64_t columns = bias ? 0 : conv_kernel_;
      auto name = [&](const char* part) { return std::string(part) + "_conv." + kind; };
      (bias ? conv_bias_ : conv_weight_) =
          store.declare(cut_by(name("c"), all_groups, n_, columns, shard.groups, Init::uniform));
      store.declare(cut_by(name("b"), all_groups, n_, columns, shard.groups, Init::uniform), true);
      store.declare(cut_by(name("x"), all_heads, p_, columns, shard.ssd_heads, Init::uniform), true);
    }
  }
  a_log_ = store.declare(cut_by("A_log", all_heads, 1, 0, shard.ssd_heads, Init::a_log));
  dt_bias_ = store.declare(cut_by("dt_bias", all_heads, 1, 0, shard.ssd_heads, Init::dt_bias));
  if (config.d_skip) d_skip_ = store.declare(cut_by("D", all_heads, 1, 0, shard.ssd_heads, Init::ones));
  if (gate_) norm_ = store.declare(cut_by("norm.weight", all_heads, p_, 0, shard.ssd_heads, Init::ones));
  const Shape out_shape = {d, all_heads * p_};
  const int out = store.declare({.name = prefix + "out_proj.weight",
                                 .global_shape = out_shape,
                                 .box = unit_box(out_shape, 1, p_, shard.ssd_heads)});
  output_ = store.declare_linear({.first = out});
}

SsdMixer::Saved SsdMixer::carve(Carver& saved, int64_t rows, int64_t tokens) const {
  const int64_t bt = rows * tokens;
  Saved s;
  s.projected = saved.take(dtype_, {bt, z_width() + cbx_width()});
  s.u = saved.take(DType::f32, {bt, heads_});
  if (conv_) s.convolved = saved.take(dtype_, {bt, cbx_width()});
  s.chunk_states = saved.take(dtype_, {rows, ssd_num_chunks(tokens, chunk_), heads_, p_, n_});
  s.y = saved.take(dtype_, {bt, inner()});
  if (gate_) {
    s.squares = saved.take(DType::f32, {bt, groups_});
    s.gated = saved.take(dtype_, {bt, inner()});
  }
  return s;
}

void SsdMixer::carve_pending(Carver& pending, int64_t rows, int64_t tokens) const {
  take_d_projected(pending, rows * tokens);
}

// Rows begin where vectors of 16 bytes do, though u's columns are few.
Tensor SsdMixer::take_d_projected(Carver& pending, int64_t num_tokens) const {
  constexpr int64_t kColumns = 8;
  const int64_t padded = (width() + kColumns - 1) / kColumns * kColumns;
  const Tensor whole = pending.take(dtype_, {num_tokens, padded});
  return whole.empty() ? whole : whole.slice(1, 0, width());
}

SsdMixer::Parts SsdMixer::split(const Tensor& cbx, const TokenContext& tokens) const {
  const int64_t gn = groups_ * n_;
  return {cbx.slice(1, 0, gn).reshape({tokens.rows, tokens.tokens, groups_, n_}),
          cbx.slice(1, gn, gn).reshape({tokens.rows, tokens.tokens, groups_, n_}),
          cbx.slice(1, 2 * gn, inner()).reshape({tokens.rows, tokens.tokens, heads_, p_})};
}

SsdInput SsdMixer::scan_input(const TokenContext& tokens, const Saved& saved) const {
  const Parts parts = split(conv_ ? saved.convolved : cbx_columns(saved.projected), tokens);
  SsdInput in{.x = parts.x, .b = parts.b, .c = parts.c};
  in.u = saved.u.reshape({tokens.rows, tokens.tokens, heads_});
  in.dt_bias = (*store_)[dt_bias_].weight;
  in.a_log = (*store_)[a_log_].weight;
  if (d_skip_ >= 0) in.d_skip = (*store_)[d_skip_].weight;
  in.cos = rotary_.cos;
  in.sin = rotary_.sin;
  in.c_scale = tokens.c_scale;
  in.start = tokens.start;
  in.chunk = chunk_;
  return in;
}

void SsdMixer::sum_over_sharers(const Tensor& values) const {
  if (group_sharers_->size() > 1) group_sharers_->all_reduce(values);
}

void SsdMixer::forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& out,
                       Carver& saved) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Shape rows = {tokens.rows, tokens.tokens, cbx_width()};
  // u keeps f32 where the rest is rounded, so it is a product of its own.
  store_->linear(rounded_projection_).forward(stream, x, s.projected);
  store_->linear(u_projection_).forward(stream, x, s.u);
  if (conv_) {
    Conv1dForward conv{.x = cbx_columns(s.projected).reshape(rows),
                       .weight = store_->fused_weight(conv_weight_, 3),
                       .bias = store_->fused_weight(conv_bias_, 3),
                       .start = tokens.start,
                       .y = s.convolved.reshape(rows)};
    if (tokens.cache != nullptr) conv.initial_window = conv.final_window = tokens.cache->window;
    run(stream, conv);
  }
  SsdForward scan{.in = scan_input(tokens, s),
                  .y = s.y.reshape({tokens.rows, tokens.tokens, heads_, p_}),
                  .chunk_states = s.chunk_states};
  if (tokens.cache != nullptr) {
    scan.in.initial_state = scan.final_state = tokens.cache->state;
    scan.chunk_states = {};
  }
  run(stream, scan);
  if (gate_) {
    const Tensor z = z_columns(s.projected);
    run(stream, GatedNormSquares{.x = s.y, .z = z, .squares = s.squares});
    sum_over_sharers(s.squares);
    run(stream, GatedNormForward{.x = s.y,
                                 .z = z,
                                 .weight = (*store_)[norm_].weight,
                                 .squares = s.squares,
                                 .group_width = group_width_,
                                 .eps = eps_,
                                 .y = s.gated});
  }
  output().forward(stream, gate_ ? s.gated : s.y, out);
}

void SsdMixer::backward_input(Stream& stream, const TokenContext& tokens, const Tensor& d_out,
                              const Tensor& dx, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = take_d_projected(pending, tokens.rows * tokens.tokens);
  Carver count;
  auto carve_scratch = [&](Carver& carver) {
    const Tensor dy = carver.take(dtype_, s.y.shape()), du = carver.take(DType::f32, s.u.shape());
    const Tensor d_convolved = conv_ ? carver.take(dtype_, s.convolved.shape()) : Tensor{};
    return std::array{dy, du, d_convolved, gate_ ? carver.take(DType::f32, s.squares.shape()) : Tensor{}};
  };
  carve_scratch(count);
  Scratch scratch(stream, count.used());
  Carver carver = scratch.carver();
  const auto [dy, du, d_convolved, dots] = carve_scratch(carver);

  output().backward_input(stream, d_out, dy);
  if (gate_) {
    const Tensor z = z_columns(s.projected), weight = (*store_)[norm_].weight;
    run(stream, GatedNormDots{.x = s.y, .z = z, .weight = weight, .dy = dy, .dots = dots});
    sum_over_sharers(dots);
    run(stream, GatedNormBackward{.x = s.y,
                                  .z = z,
                                  .weight = weight,
                                  .squares = s.squares,
                                  .dots = dots,
                                  .group_width = group_width_,
                                  .eps = eps_,
                                  .dy = dy,
                                  .dx = dy,
                                  .dz = z_columns(d_projected),
                                  .d_weight = (*store_)[norm_].gradient});
  }
  const Parts d = split(conv_ ? d_convolved : cbx_columns(d_projected), tokens);
  SsdBackward scan{.in = scan_input(tokens, s),
                   .chunk_states = s.chunk_states,
                   .dy = dy.reshape({tokens.rows, tokens.tokens, heads_, p_}),
                   .dx = d.x,
                   .db = d.b,
                   .dc = d.c,
                   .du = du.reshape({tokens.rows, tokens.tokens, heads_}),
                   .d_dt_bias = (*store_)[dt_bias_].gradient,
                   .d_a_log = (*store_)[a_log_].gradient};
  if (d_skip_ >= 0) scan.d_d_skip = (*store_)[d_skip_].gradient;
  run(stream, scan);
  run(stream, Copy{du, u_columns(d_projected)});
  if (conv_) {
    const Shape rows = {tokens.rows, tokens.tokens, cbx_width()};
    run(stream, Conv1dBackward{.x = cbx_columns(s.projected).reshape(rows),
                               .weight = store_->fused_weight(conv_weight_, 3),
                               .bias = store_->fused_weight(conv_bias_, 3),
                               .start = tokens.start,
                               .dy = d_convolved.reshape(rows),
                               .dx = cbx_columns(d_projected).reshape(rows),
                               .d_weight = store_->fused_gradient(conv_weight_, 3),
                               .d_bias = store_->fused_gradient(conv_bias_, 3)});
  }
  projection().backward_input(stream, d_projected, dx);
}

void SsdMixer::backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& x,
                               const Tensor& d_out, Carver& saved, Carver& pending) const {
  const Saved s = carve(saved, tokens.rows, tokens.tokens);
  const Tensor d_projected = take_d_projected(pending, tokens.rows * tokens.tokens);
  output().backward_weight(stream, d_out, gate_ ? s.gated : s.y);
  projection().backward_weight(stream, d_projected, x);
}

LayerCache SsdMixer::make_cache(Carver& carver, int64_t rows, int64_t) const {
  LayerCache cache{.state = carver.take(DType::f32, {rows, heads_, p_, n_})};
  if (conv_) cache.window = carver.take(dtype_, {rows, conv_kernel_ - 1, cbx_width()});
  return cache;
}

}  // namespace transxssm
