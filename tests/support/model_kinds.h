// A tiny configuration of every kind of model, for tests that must hold for all of them.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"

namespace transxssm {

struct ModelKind {
  std::string name;
  ModelConfig config;
};

inline std::vector<ModelKind> model_kinds() {
  const auto make = [](const char* name, const std::string& fields) {
    return ModelKind{
        name, model_config_from_text("vocab_size: 37 d_model: 32 num_layers: 4 num_heads: 4 d_state: 8 "
                                     "chunk: 8 " +
                                     fields)};
  };
  const std::string hybrid = "d_ff: 24 attn_period: 4 attn_offset: 3 ";
  const std::string mixer2 =
      "learned_residual: false ssd_position: 'conv1d' ssd_expand: 2 ssd_gate: true d_skip: true "
      "attention_rope: false ";
  const std::string llama = "d_ff: 24 attn_period: 1 attn_offset: 0 learned_residual: false num_kv_heads: 2 ";
  return {
      make("transxssm", hybrid),
      make("transxssm_untied_grouped", hybrid + "num_kv_heads: 1 num_groups: 2 tie_embeddings: false"),
      make("transxssm_pattern", "d_ff: 24 layer_pattern: 'SASA' ssd_expand: 2 num_groups: 2"),
      make("transxssm_yarn", hybrid + "rope_scaling: 'yarn' rope_original_length: 16 log_n_scale: true"),
      make("transxssm_no_feed_forward", "attn_period: 2 attn_offset: 1 d_skip: true"),
      make("state_space_only", "d_ff: 24 attn_period: 0 attn_offset: 0"),
      make("conv1d", hybrid + "ssd_position: 'conv1d' d_skip: true attention_rope: false conv_kernel: 3"),
      make("decay", hybrid + "ssd_position: 'none' attention_rope: false"),
      make("jamba", hybrid + mixer2),
      make("llama", llama),
      make("llama_untied_linear", llama + "tie_embeddings: false rope_scaling: 'linear' rope_base: 5e5"),
      make("llama_dynamic",
           llama + "rope_scaling: 'dynamic' max_position_embeddings: 64 rope_original_length: 64"),
      make("llama_biases", llama +
                               "attention_bias: true mlp_bias: true head_dim: 16 max_position_embeddings: 64 "
                               "rope_scaling: 'llama3' rope_original_length: 16 rope_scaling_factor: 8"),
      make("llama_wide_heads", llama + "head_dim: 24 attention_bias: true tie_embeddings: false"),
      make("transxssm_wide_heads", hybrid + "head_dim: 24 num_groups: 2 attention_bias: true"),
      make("mamba2", mixer2 + "attn_period: 0 attn_offset: 0 num_groups: 1"),
      make("mamba2_untied_grouped",
           mixer2 + "attn_period: 0 attn_offset: 0 num_groups: 2 tie_embeddings: false"),
  };
}

}  // namespace transxssm
