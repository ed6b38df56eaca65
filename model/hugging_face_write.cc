// config.json and generation_config.json of an export.
#include <nlohmann/json.hpp>

#include "model/hugging_face.h"

namespace transxssm {
namespace {

using Json = nlohmann::ordered_json;

Json id_or_null(const std::optional<int32_t>& id) {
  return id ? Json(*id) : Json(nullptr);
}

const char* scaling_word(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::linear:
      return "linear";
    case RopeScaling::dynamic:
      return "dynamic";
    case RopeScaling::yarn:
      return "yarn";
    case RopeScaling::llama3:
      return "llama3";
    case RopeScaling::none:
      break;
  }
  return "default";
}

const char* position_word(SsdPosition position) {
  switch (position) {
    case SsdPosition::rope:
      return "rope";
    case SsdPosition::conv1d:
      return "conv1d";
    case SsdPosition::none:
      break;
  }
  return "none";
}

void add_rope(Json& json, const ModelConfig& c) {
  json["rope_theta"] = c.rope_base;
  json["rope_scaling"] = nullptr;
  if (c.rope_scaling != RopeScaling::none)
    json["rope_scaling"] = {{"rope_type", scaling_word(c.rope_scaling)},
                            {"factor", c.rope_scaling_factor},
                            {"original_max_position_embeddings", c.rope_original_length}};
  if (c.rope_scaling == RopeScaling::llama3) {
    json["rope_scaling"]["low_freq_factor"] = c.rope_low_freq_factor;
    json["rope_scaling"]["high_freq_factor"] = c.rope_high_freq_factor;
  }
  json["max_position_embeddings"] = c.max_position_embeddings;
}

void add_attention(Json& json, const ModelConfig& c) {
  json["intermediate_size"] = c.d_ff;
  json["num_attention_heads"] = c.num_heads;
  json["num_key_value_heads"] = c.kv_heads();
  json["head_dim"] = c.head_width();
  json["attention_bias"] = c.attention_bias;
  json["mlp_bias"] = c.mlp_bias;
  json["rms_norm_eps"] = c.norm_eps;
  add_rope(json, c);
}

void add_mamba2(Json& json, const ModelConfig& c) {
  json["num_heads"] = c.ssd_heads();
  json["head_dim"] = c.head_width();
  json["state_size"] = c.d_state;
  json["n_groups"] = c.groups();
  json["expand"] = c.ssd_expand;
  json["conv_kernel"] = c.conv_kernel;
  json["use_bias"] = false;
  json["use_conv_bias"] = true;
  json["chunk_size"] = c.chunk;
  json["layer_norm_epsilon"] = c.norm_eps;
  json["rms_norm"] = true;
}

void add_transxssm(Json& json, const ModelConfig& c) {
  json["auto_map"] = {{"AutoConfig", "configuration_transxssm.TransXSSMConfig"},
                      {"AutoModelForCausalLM", "modeling_transxssm.TransXSSMForCausalLM"}};
  add_attention(json, c);
  json["log_n_scale"] = c.log_n_scale;
  json["attn_layer_period"] = c.attn_period;
  json["attn_layer_offset"] = c.attn_offset;
  // A period of 0 has no meaning in Python's %: the pattern says the same.
  const bool no_attention = c.layer_pattern.empty() && c.attn_period == 0;
  if (!c.layer_pattern.empty() || no_attention)
    json["layer_pattern"] =
        no_attention ? std::string(static_cast<size_t>(c.num_layers), 'S') : c.layer_pattern;
  json["attention_position"] = c.attention_rope ? "rope" : "none";
  json["ssd_state_size"] = c.d_state;
  json["ssd_num_groups"] = c.groups();
  json["ssd_chunk_size"] = c.chunk;
  json["ssd_expand"] = c.ssd_expand;
  json["ssd_position"] = position_word(c.ssd_position);
  json["ssd_gate"] = c.ssd_gate;
  json["ssd_skip"] = c.d_skip;
  json["ssd_conv_kernel"] = c.conv_kernel;
  json["learned_residual"] = c.learned_residual;
}

}  // namespace

std::string model_config_to_hugging_face(const ModelConfig& c, const HfTokens& tokens, DType dtype) {
  const HfFormat format = hugging_face_format(c);
  Json json;
  json["model_type"] = hugging_face_model_type(format);
  json["architectures"] = {format == HfFormat::llama    ? "LlamaForCausalLM"
                           : format == HfFormat::mamba2 ? "Mamba2ForCausalLM"
                                                        : "TransXSSMForCausalLM"};
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.d_model;
  json["num_hidden_layers"] = c.num_layers;
  if (format == HfFormat::llama) add_attention(json, c);
  if (format == HfFormat::mamba2) add_mamba2(json, c);
  if (format == HfFormat::transxssm) add_transxssm(json, c);
  json["hidden_act"] = "silu";
  json["tie_word_embeddings"] = c.tie_embeddings;
  json["initializer_range"] = c.initializer_range;
  // Written where there is none too: the library's own defaults are ids of some other vocabulary.
  json["bos_token_id"] = id_or_null(tokens.bos);
  json["eos_token_id"] = id_or_null(tokens.eos);
  json["pad_token_id"] = id_or_null(tokens.pad);
  json["torch_dtype"] = dtype == DType::bf16 ? "bfloat16" : "float32";
  return json.dump(2) + "\n";
}

std::string generation_config_to_hugging_face(const HfTokens& tokens) {
  Json json;
  json["_from_model_config"] = true;
  if (tokens.bos) json["bos_token_id"] = *tokens.bos;
  if (tokens.eos) json["eos_token_id"] = *tokens.eos;
  if (tokens.pad) json["pad_token_id"] = *tokens.pad;
  return json.dump(2) + "\n";
}

}  // namespace transxssm
