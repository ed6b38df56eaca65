// The shape of a model: everything that decides which parameters exist and what is computed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

// How a state-space mixer knows positions: by rotating C and B (unified RoPE), by a causal convolution over
// X, B and C, or by its decay alone.
enum class SsdPosition { rope, conv1d, none };
// How rotary frequencies are stretched beyond `rope_original_length` positions.
enum class RopeScaling { none, linear, dynamic, yarn, llama3 };

// Defaults here are the only ones; message ModelConfig of model.proto has the same fields, all optional.
struct ModelConfig {
  int64_t vocab_size = 0;    // V, padding excluded; required
  int64_t d_model = 0;       // D; required
  int64_t num_layers = 0;    // L; required
  int64_t num_heads = 0;     // H of attention and state-space layers; required
  int64_t num_kv_heads = 0;  // KV; 0: num_heads. Read it through kv_heads()
  int64_t d_ff = 0;          // F; 0: layers have no feed-forward sub-layer
  int64_t d_state = 128;     // N
  int64_t num_groups = 0;    // G; 0: num_heads. Read it through groups()
  int64_t chunk = 256;       // Q, tokens of a chunk of the state-space scan
  int64_t attn_period = 8;   // layer i is attention where i % attn_period == attn_offset, else state-space;
  int64_t attn_offset = 7;   // period 0: no layer is attention
  double rope_base = 10000;
  double norm_eps = 1e-6;
  bool learned_residual = true;  // per-channel weights on the residual stream, initialised to one
  bool tie_embeddings = true;    // the LM head is the embedding
  bool d_skip = false;           // Y += D_skip * X in state-space layers
  // One letter a layer, A (attention) or S (state-space), instead of attn_period and attn_offset; empty:
  // those.
  std::string layer_pattern;
  bool attention_rope = true;  // false: attention without positions
  SsdPosition ssd_position = SsdPosition::rope;
  int64_t ssd_expand = 1;   // state-space heads: ssd_expand * num_heads
  bool ssd_gate = false;    // Y passes a RMSNorm per group, gated by silu(z)
  int64_t conv_kernel = 4;  // of ssd_position conv1d
  RopeScaling rope_scaling = RopeScaling::none;
  double rope_scaling_factor = 4;
  int64_t rope_original_length = 2048;
  bool log_n_scale = false;  // q and C times max(1, log(n) / log(base length)), n = position + 1
  double initializer_range = 0.02;
  int64_t max_position_embeddings =
      2048;  // longest row the model is meant for; positions beyond it only warn
  // P of attention and state-space heads: projections are num_heads * P wide. 0: d_model / num_heads. Read it
  // through head_width()
  int64_t head_dim = 0;
  bool attention_bias = false;  // of the projections q, k, v and o
  bool mlp_bias = false;        // of the projections gate, up and down
  // llama3: pairs that turn less than the one within the original length are interpolated, those that turn
  // more than the other are left alone.
  double rope_low_freq_factor = 1;
  double rope_high_freq_factor = 4;

  int64_t head_width() const { return head_dim > 0 ? head_dim : num_heads > 0 ? d_model / num_heads : 0; }
  int64_t kv_heads() const { return num_kv_heads > 0 ? num_kv_heads : num_heads; }
  int64_t groups() const { return num_groups > 0 ? num_groups : num_heads; }
  int64_t ssd_heads() const { return ssd_expand * num_heads; }
  bool is_attention(int64_t layer) const {
    if (!layer_pattern.empty()) return layer_pattern[static_cast<size_t>(layer)] == 'A';
    return attn_period > 0 && layer % attn_period == attn_offset;
  }
  // Length from which the log-n scale grows.
  int64_t log_n_base() const {
    return rope_scaling == RopeScaling::none ? max_position_embeddings : rope_original_length;
  }
  int64_t num_attention_layers() const;
  bool operator==(const ModelConfig&) const = default;
};

// Reads a textproto of message ModelConfig. `preset: "tiny"` gives the fields that are not set otherwise.
// Throws UsageError with line and column for text that does not parse, and one that begins with "field: " for
// an unknown preset and for a word that is not a value of its field.
ModelConfig model_config_from_text(std::string_view textproto);
// The textproto with every field in order of its number, one a line: equal configurations give equal text,
// and reading it gives the configuration back.
std::string to_text(const ModelConfig& config);

// Every mistake as "field: what is wrong, with the nearest legal value"; empty where there is none.
std::vector<std::string> problems(const ModelConfig& config);
// Likewise for a mesh: what does not divide by `tp` or is too shallow for `pp`. Fields are named
// "parallel.tp" and "parallel.pp". For a configuration without problems.
std::vector<std::string> mesh_problems(const ModelConfig& config, int pp, int tp);

// The named shapes: "tiny", "transxssm-320m", ...
std::vector<std::string> model_preset_names();
ModelConfig model_preset(std::string_view name);  // throws UsageError naming the known ones

}  // namespace transxssm
