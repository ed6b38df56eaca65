#include "model/blocks.h"

#include "kernels/residual.h"
#include "kernels/rmsnorm.h"
#include "model/attention.h"
#include "model/mlp.h"
#include "model/ssd.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

template <class Mixer>
class Layer : public Block {
 public:
  Layer(const ModelConfig& config, const Shard& shard, const Precision& precision, int layer,
        ParameterStore& store, const Boundary& boundary, auto&&... mixer_arguments)
      : store_(&store),
        boundary_(boundary),
        precision_(precision),
        d_(config.d_model),
        eps_(config.norm_eps) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    auto per_channel = [&](const char* name) {
      return store.declare({.name = prefix + name + ".weight",
                            .global_shape = {d_},
                            .box = whole_box({d_}),
                            .init = Init::ones,
                            .owner = shard.tp_rank == 0});
    };
    norm1_ = per_channel("pre_sequence_layernorm");
    mixer_ = std::make_unique<Mixer>(config, shard, precision, layer, store, mixer_arguments...);
    if (config.learned_residual) residual1_ = per_channel("post_sequence_residual");
    if (config.d_ff == 0) return;
    norm2_ = per_channel("pre_state_layernorm");
    mlp_ = std::make_unique<Mlp>(config, shard, precision, layer, store);
    if (config.learned_residual) residual2_ = per_channel("post_state_residual");
  }

  void forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& y,
               Carver saved) const override {
    const int64_t num_tokens = tokens.rows * tokens.tokens;
    const Saved s = carve(saved, num_tokens);
    Scratch scratch(stream, branch_bytes(num_tokens));
    Carver temporaries = scratch.carver();
    const Tensor branch = one_type() ? y : take_branch(temporaries, num_tokens);
    run(stream,
        RmsNormForward{.x = x, .weight = weight(norm1_), .y = s.normed1, .rstd = s.rstd1, .eps = eps_});
    boundary_.enter_forward(s.normed1);
    named(stream, Mixer::kName, [&] { mixer_->forward(stream, tokens, s.normed1, branch, saved); });
    boundary_.leave_forward(branch);
    if (!mlp_)
      return run(stream, ResidualForward{.x = x, .branch = branch, .weight = weight(residual1_), .y = y});
    run(stream, RmsNormForward{.x = x,
                               .branch = branch,
                               .residual_weight = weight(residual1_),
                               .sum = s.h,
                               .weight = weight(norm2_),
                               .y = s.normed2,
                               .rstd = s.rstd2,
                               .eps = eps_});
    boundary_.enter_forward(s.normed2);
    named(stream, Mlp::kName, [&] { mlp_->forward(stream, s.normed2, branch, saved); });
    boundary_.leave_forward(branch);
    run(stream, ResidualForward{.x = s.h, .branch = branch, .weight = weight(residual2_), .y = y});
  }

  void backward_input(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& dy,
                      const Tensor& dx, Carver saved, Carver pending) const override {
    const int64_t num_tokens = tokens.rows * tokens.tokens;
    const Saved s = carve(saved, num_tokens);
    Carver count;
    take_branch(count, num_tokens), count.take(precision_.residual, {num_tokens, d_});
    Scratch scratch(stream, count.used());
    Carver temporaries = scratch.carver();
    const Tensor d_normed = take_branch(temporaries, num_tokens);
    const Tensor d_h = temporaries.take(precision_.residual, {num_tokens, d_});
    const Tensor rounded = take_rounded(pending, num_tokens);
    const Tensor d_branch = one_type() ? dy : rounded;
    if (!mlp_) {
      run(stream, ResidualBackward{dy, x, weight(residual1_), dx, gradient(residual1_), rounded});
      boundary_.leave_backward(d_branch);
      named(stream, Mixer::kName,
            [&] { mixer_->backward_input(stream, tokens, d_branch, d_normed, saved, pending); });
      return backward_norm1(stream, s, x, d_normed, dx);
    }
    const Tensor d_mixer = take_branch(pending, num_tokens);

    // The mixer's part of `saved` and `pending` lies before the mlp's.
    Carver mixer_saved = saved, mixer_pending = pending;
    mixer_->carve_saved(saved, tokens.rows, tokens.tokens);
    mixer_->carve_pending(pending, tokens.rows, tokens.tokens);

    run(stream, ResidualBackward{dy, s.h, weight(residual2_), d_h, gradient(residual2_), rounded});
    boundary_.leave_backward(d_branch);
    named(stream, Mlp::kName, [&] { mlp_->backward_input(stream, d_branch, d_normed, saved, pending); });
    boundary_.enter_backward(d_normed);
    run(stream, RmsNormBackward{.dy = d_normed,
                                .d_sum = d_h,
                                .sum = s.h,
                                .rstd = s.rstd2,
                                .weight = weight(norm2_),
                                .x = x,
                                .residual_weight = weight(residual1_),
                                .dx = dx,
                                .d_branch = d_mixer,
                                .d_weight = gradient(norm2_),
                                .d_residual_weight = gradient(residual1_)});
    boundary_.leave_backward(d_mixer);
    named(stream, Mixer::kName,
          [&] { mixer_->backward_input(stream, tokens, d_mixer, d_normed, mixer_saved, mixer_pending); });
    backward_norm1(stream, s, x, d_normed, dx);
  }

  void backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& dy, Carver saved,
                       Carver pending) const override {
    const int64_t num_tokens = tokens.rows * tokens.tokens;
    const Saved s = carve(saved, num_tokens);
    const Tensor rounded = take_rounded(pending, num_tokens);
    const Tensor d_branch = one_type() ? dy : rounded;
    const Tensor d_mixer = mlp_ ? take_branch(pending, num_tokens) : d_branch;
    named(stream, Mixer::kName,
          [&] { mixer_->backward_weight(stream, tokens, s.normed1, d_mixer, saved, pending); });
    if (!mlp_) return;
    named(stream, Mlp::kName, [&] { mlp_->backward_weight(stream, s.normed2, d_branch, saved, pending); });
  }

  int64_t saved_bytes(int64_t rows, int64_t tokens) const override {
    Carver count;
    carve(count, rows * tokens);
    mixer_->carve_saved(count, rows, tokens);
    if (mlp_) mlp_->carve_saved(count, rows * tokens);
    return count.used();
  }

  int64_t pending_bytes(int64_t rows, int64_t tokens) const override {
    Carver count;
    take_rounded(count, rows * tokens);
    if (mlp_) take_branch(count, rows * tokens);
    mixer_->carve_pending(count, rows, tokens);
    if (mlp_) mlp_->carve_pending(count, rows * tokens);
    return count.used();
  }

  LayerCache make_cache(Carver& carver, int64_t rows, int64_t capacity) const override {
    return mixer_->make_cache(carver, rows, capacity);
  }

 private:
  // Traces show the sub-layer around its operations.
  static void named(Stream& stream, const char* name, auto&& work) {
    const Span span(Activity::compute, name, &stream);
    work();
  }
  // The end of the backward: dx holds the gradient that reached x on the residual path.
  void backward_norm1(Stream& stream, const auto& saved, const Tensor& x, const Tensor& d_normed,
                      const Tensor& dx) const {
    boundary_.enter_backward(d_normed);
    run(stream, RmsNormBackward{.dy = d_normed,
                                .d_sum = dx,
                                .sum = x,
                                .rstd = saved.rstd1,
                                .weight = weight(norm1_),
                                .dx = dx,
                                .d_weight = gradient(norm1_)});
  }

  struct Saved {
    Tensor normed1, rstd1;  // [BT,D], [BT]
    Tensor h;               // [BT,D] the residual stream between the sub-layers
    Tensor normed2, rstd2;  // [BT,D], [BT]
  };
  Saved carve(Carver& saved, int64_t num_tokens) const {
    Saved s;
    s.normed1 = take_branch(saved, num_tokens);
    s.rstd1 = saved.take(DType::f32, {num_tokens});
    if (!mlp_) return s;
    s.h = saved.take(precision_.residual, {num_tokens, d_});
    s.normed2 = take_branch(saved, num_tokens);
    s.rstd2 = saved.take(DType::f32, {num_tokens});
    return s;
  }
  // Branch and residual stream in one type: gradients and sums of the one can lie in the other's memory.
  bool one_type() const { return precision_.activation == precision_.residual; }
  Tensor take_branch(Carver& carver, int64_t num_tokens) const {
    return carver.take(precision_.activation, {num_tokens, d_});
  }
  int64_t branch_bytes(int64_t num_tokens) const {
    Carver count;
    if (!one_type()) take_branch(count, num_tokens);
    return count.used();
  }
  // dy in the branch's type, kept for the weight gradients; empty where dy is that already.
  Tensor take_rounded(Carver& pending, int64_t num_tokens) const {
    return one_type() ? Tensor{} : take_branch(pending, num_tokens);
  }
  // Empty for the residual weights of a plain residual.
  Tensor weight(int index) const { return index < 0 ? Tensor{} : (*store_)[index].weight; }
  Tensor gradient(int index) const { return index < 0 ? Tensor{} : (*store_)[index].gradient; }

  const ParameterStore* store_;
  Boundary boundary_;
  Precision precision_;
  int64_t d_;
  double eps_;
  std::unique_ptr<Mixer> mixer_;
  std::unique_ptr<Mlp> mlp_;  // null where d_ff is 0: y = w1 * x + mixer(norm(x))
  int norm1_ = -1, residual1_ = -1, norm2_ = -1, residual2_ = -1;
};

}  // namespace

std::unique_ptr<Block> make_layer(const ModelConfig& config, const Shard& shard, const Precision& precision,
                                  int layer, ParameterStore& store, const LayerTables& tables,
                                  const Boundary& boundary, Communicator& group_sharers) {
  if (config.is_attention(layer))
    return std::make_unique<Layer<AttentionMixer>>(config, shard, precision, layer, store, boundary,
                                                   tables.positions);
  return std::make_unique<Layer<SsdMixer>>(config, shard, precision, layer, store, boundary, tables.chunk,
                                           group_sharers);
}

}  // namespace transxssm
