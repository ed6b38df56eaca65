#include "model/hugging_face.h"

#include <utility>

namespace transxssm {
namespace {

// Stacks what shares one tensor of the export.
HfTensor stacked(std::string name, std::vector<HfPart> parts) {
  HfTensor tensor{std::move(name), parts.front().shape, std::move(parts)};
  for (size_t i = 1; i < tensor.parts.size(); ++i) tensor.shape[0] += tensor.parts[i].shape[0];
  return tensor;
}

// A PyTorch depthwise convolution has one input channel a group: [channels, 1, kernel].
HfTensor as_convolution(HfTensor tensor) {
  tensor.shape = {tensor.shape[0], 1, tensor.shape[1]};
  return tensor;
}

// Names of the tensors that llama and mamba2 share with ours in all but the name.
struct Names {
  const char *embedding, *layer, *norm1, *norm2, *attention, *state_space, *feed_forward, *final_norm;
};

Names names_of(HfFormat format) {
  switch (format) {
    case HfFormat::llama:
      return {"model.embed_tokens.weight",
              "model.layers.",
              "input_layernorm.weight",
              "post_attention_layernorm.weight",
              "self_attn.",
              "",
              "mlp.",
              "model.norm.weight"};
    case HfFormat::mamba2:
      return {"backbone.embeddings.weight", "backbone.layers.", "norm.weight", "", "", "mixer.", "",
              "backbone.norm_f.weight"};
    case HfFormat::transxssm:
      break;
  }
  return {"model.word_embed.weight",
          "model.layers.",
          "pre_sequence_layernorm.weight",
          "pre_state_layernorm.weight",
          "attn.",
          "ssd.",
          "feed_forward.",
          "model.final_layernorm.weight"};
}

class Table {
 public:
  explicit Table(const ModelConfig& config)
      : config_(config), format_(hugging_face_format(config)), names_(names_of(format_)) {}

  std::vector<HfTensor> build() {
    const ModelConfig& c = config_;
    add(names_.embedding, "model.word_embed.weight", {c.vocab_size, c.d_model});
    for (int64_t i = 0; i < c.num_layers; ++i) layer(i);
    add(names_.final_norm, "model.final_layernorm.weight", {c.d_model});
    if (!c.tie_embeddings) add("lm_head.weight", "lm_head.weight", {c.vocab_size, c.d_model});
    return std::move(tensors_);
  }

 private:
  void add(std::string name, std::string ours, const Shape& shape) {
    tensors_.push_back({std::move(name), shape, {{std::move(ours), shape}}});
  }

  void linear(const std::string& name, const std::string& ours, int64_t rows, int64_t columns, bool bias) {
    add(name + ".weight", ours + ".weight", {rows, columns});
    if (bias) add(name + ".bias", ours + ".bias", {rows});
  }

  void layer(int64_t i) {
    const ModelConfig& c = config_;
    const std::string prefix = names_.layer + std::to_string(i) + ".";
    const std::string ours = "model.layers." + std::to_string(i) + ".";
    add(prefix + names_.norm1, ours + "pre_sequence_layernorm.weight", {c.d_model});
    if (c.is_attention(i))
      attention(prefix + names_.attention, ours + "attn.");
    else
      state_space(prefix + names_.state_space, ours + "ssd.");
    if (c.learned_residual)
      add(prefix + "post_sequence_residual.weight", ours + "post_sequence_residual.weight", {c.d_model});
    if (c.d_ff == 0) return;
    add(prefix + names_.norm2, ours + "pre_state_layernorm.weight", {c.d_model});
    const auto product = [&](const std::string& name, int64_t rows, int64_t columns) {
      linear(prefix + names_.feed_forward + name, ours + "feed_forward." + name, rows, columns, c.mlp_bias);
    };
    product("gate_proj", c.d_ff, c.d_model);
    product("up_proj", c.d_ff, c.d_model);
    product("down_proj", c.d_model, c.d_ff);
    if (c.learned_residual)
      add(prefix + "post_state_residual.weight", ours + "post_state_residual.weight", {c.d_model});
  }

  void attention(const std::string& prefix, const std::string& ours) {
    const ModelConfig& c = config_;
    const int64_t queries = c.num_heads * c.head_width(), keys = c.kv_heads() * c.head_width();
    const auto product = [&](const std::string& name, int64_t rows, int64_t columns) {
      linear(prefix + name, ours + name, rows, columns, c.attention_bias);
    };
    product("q_proj", queries, c.d_model);
    product("k_proj", keys, c.d_model);
    product("v_proj", keys, c.d_model);
    product("o_proj", c.d_model, queries);
  }

  void state_space(const std::string& prefix, const std::string& ours) {
    const ModelConfig& c = config_;
    const int64_t heads = c.ssd_heads(), inner = heads * c.head_width(), state = c.groups() * c.d_state;
    std::vector<HfPart> projections;
    if (c.ssd_gate) projections.push_back({ours + "z_proj.weight", {inner, c.d_model}});
    projections.push_back({ours + "x_proj.weight", {inner, c.d_model}});
    projections.push_back({ours + "b_proj.weight", {state, c.d_model}});
    projections.push_back({ours + "c_proj.weight", {state, c.d_model}});
    projections.push_back({ours + "dt_proj.weight", {heads, c.d_model}});
    if (format_ == HfFormat::mamba2) {
      tensors_.push_back(stacked(prefix + "in_proj.weight", std::move(projections)));
    } else {
      for (const HfPart& part : projections)
        add(prefix + part.name.substr(ours.size()), part.name, part.shape);
    }
    if (c.ssd_position == SsdPosition::conv1d) {
      tensors_.push_back(as_convolution(
          stacked(prefix + "conv1d.weight", {{ours + "x_conv.weight", {inner, c.conv_kernel}},
                                             {ours + "b_conv.weight", {state, c.conv_kernel}},
                                             {ours + "c_conv.weight", {state, c.conv_kernel}}})));
      tensors_.push_back(stacked(prefix + "conv1d.bias", {{ours + "x_conv.bias", {inner}},
                                                          {ours + "b_conv.bias", {state}},
                                                          {ours + "c_conv.bias", {state}}}));
    }
    add(prefix + "A_log", ours + "A_log", {heads});
    add(prefix + "dt_bias", ours + "dt_bias", {heads});
    if (c.d_skip) add(prefix + "D", ours + "D", {heads});
    if (c.ssd_gate) add(prefix + "norm.weight", ours + "norm.weight", {inner});
    add(prefix + "out_proj.weight", ours + "out_proj.weight", {c.d_model, inner});
  }

  const ModelConfig& config_;
  HfFormat format_;
  Names names_;
  std::vector<HfTensor> tensors_;
};

// The dynamic scaling of the library's Llama starts from max_position_embeddings, whatever else is written.
bool llama_has_scaling(const ModelConfig& c) {
  return c.rope_scaling != RopeScaling::dynamic || c.rope_original_length == c.max_position_embeddings;
}

}  // namespace

const char* hugging_face_prefix(HfFormat format) {
  return format == HfFormat::mamba2 ? "backbone." : "model.";
}

HfFormat hugging_face_format(const ModelConfig& c) {
  const int64_t attention_layers = c.num_attention_layers();
  const bool plain = !c.learned_residual && !c.log_n_scale;
  if (plain && attention_layers == c.num_layers && c.attention_rope && c.d_ff > 0 && llama_has_scaling(c))
    return HfFormat::llama;
  if (plain && attention_layers == 0 && c.d_ff == 0 && c.ssd_position == SsdPosition::conv1d && c.ssd_gate &&
      c.d_skip && c.num_heads * c.head_width() == c.d_model)
    return HfFormat::mamba2;
  return HfFormat::transxssm;
}

const char* hugging_face_model_type(HfFormat format) {
  switch (format) {
    case HfFormat::llama:
      return "llama";
    case HfFormat::mamba2:
      return "mamba2";
    case HfFormat::transxssm:
      break;
  }
  return "transxssm";
}

std::vector<HfTensor> hugging_face_tensors(const ModelConfig& config) {
  return Table(config).build();
}

}  // namespace transxssm
