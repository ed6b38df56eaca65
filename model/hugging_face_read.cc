// config.json, from transformers or from our own export, into a ModelConfig. It is untrusted: every field is
// checked, and what this program does not compute is refused rather than left out.
#include <cmath>
#include <span>
#include <utility>

#include "model/hugging_face.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace transxssm {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxBytes = 1 << 20;

// Python writes numbers that JSON does not have; a string in their place is found out where it matters.
std::string with_infinity_quoted(std::string_view text) {
  std::string result;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    bool replaced = false;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (in_string || text.substr(i, word.size()) != word) continue;
      result += '"' + std::string(word) + '"';
      i += word.size() - 1;
      replaced = true;
      break;
    }
    if (replaced) continue;
    result += text[i];
    if (in_string && text[i] == '\\' && i + 1 < text.size())
      result += text[++i];
    else if (text[i] == '"')
      in_string = !in_string;
  }
  return result;
}

// The members of one object. Null counts as absent, as in the library.
class Fields {
 public:
  explicit Fields(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  template <class... Args>
  [[noreturn]] void refuse(const std::string& name, fmt::format_string<Args...> format,
                           Args&&... args) const {
    throw CheckpointError("config.json: {}{}: {}", prefix_, name,
                          fmt::format(format, std::forward<Args>(args)...));
  }

  bool has(const std::string& name) const { return object_.contains(name) && !object_.at(name).is_null(); }
  const Json& at(const std::string& name) const {
    if (!has(name)) refuse(name, "is missing");
    return object_.at(name);
  }
  int64_t integer(const std::string& name) const {
    const std::optional<int64_t> value = json_integer(at(name));
    if (!value) refuse(name, "{} is not a whole number", printable_json(at(name)));
    return *value;
  }
  int64_t integer(const std::string& name, int64_t standard) const {
    return has(name) ? integer(name) : standard;
  }
  double number(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_number()) refuse(name, "{} is not a number", printable_json(value));
    return value.get<double>();
  }
  double number(const std::string& name, double standard) const {
    return has(name) ? number(name) : standard;
  }
  bool flag(const std::string& name, bool standard) const {
    if (!has(name)) return standard;
    if (!at(name).is_boolean()) refuse(name, "{} is neither true nor false", printable_json(at(name)));
    return at(name).get<bool>();
  }
  std::string word(const std::string& name, const std::string& standard) const {
    if (!has(name)) return standard;
    if (!at(name).is_string()) refuse(name, "{} is not a string", printable_json(at(name)));
    return at(name).get<std::string>();
  }
  // Index of the word in `legal`.
  size_t choice(const std::string& name, const std::string& standard,
                std::span<const std::string_view> legal) const {
    const std::string value = word(name, standard);
    for (size_t i = 0; i < legal.size(); ++i)
      if (legal[i] == value) return i;
    refuse(name, "{} is not known; legal values are {}", printable_json(at(name)), fmt::join(legal, ", "));
  }
  void only_one_level() const {
    for (const auto& [name, value] : object_.items())
      if (value.is_object())
        refuse(printable(name), "{} is an object, which is not what this program computes",
               printable_json(value));
  }
  // A field that this program computes with one value only; absent means that value.
  void only(const std::string& name, const Json& legal) const {
    if (has(name) && at(name) != legal)
      refuse(name, "{} is not what this program computes; the legal value is {}", printable_json(at(name)),
             printable_json(legal));
  }

 private:
  const Json& object_;
  std::string prefix_;
};

constexpr std::string_view kScalingWords[] = {"default", "linear", "dynamic", "yarn", "llama3"};

// Frequencies: rope_theta and rope_scaling, or both in rope_parameters as transformers 5 writes them.
class RopeReader {
 public:
  RopeReader(const Fields& top, ModelConfig& config) : top_(top), config_(config) {}

  // `dynamic_from_longest`: dynamic scaling starts from max_position_embeddings whatever the object says.
  void read(bool dynamic_from_longest) {
    config_.max_position_embeddings =
        top_.integer("max_position_embeddings", config_.max_position_embeddings);
    config_.rope_base = top_.number("rope_theta", config_.rope_base);
    top_.only("partial_rotary_factor", 1.0);
    if (top_.has("rope_scaling") && top_.has("rope_parameters") &&
        top_.at("rope_scaling") != top_.at("rope_parameters"))
      top_.refuse("rope_scaling", "contradicts rope_parameters; give one of the two");
    const std::string name = top_.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
    if (!top_.has(name)) return;
    if (!top_.at(name).is_object()) top_.refuse(name, "{} is not an object", printable_json(top_.at(name)));
    scaling(Fields(top_.at(name), name + "."), dynamic_from_longest);
  }

 private:
  void scaling(const Fields& f, bool dynamic_from_longest) {
    if (f.has("rope_theta")) {
      config_.rope_base = f.number("rope_theta");
      if (top_.has("rope_theta") && top_.number("rope_theta") != config_.rope_base)
        f.refuse("rope_theta", "{} contradicts rope_theta {}", config_.rope_base, top_.number("rope_theta"));
    }
    f.only("partial_rotary_factor", 1.0);
    f.only_one_level();  // frequencies for each type of layer are objects of their own
    // Older files have another name of rope_type; some have both.
    const std::string type = f.has("rope_type") || !f.has("type") ? "rope_type" : "type";
    const size_t kind = f.choice(type, "default", kScalingWords);
    if (f.has("type") && f.at("type") != f.at(type))
      f.refuse("type", "{} contradicts rope_type {}", printable_json(f.at("type")),
               printable_json(f.at(type)));
    if (kind == 0) return;
    config_.rope_scaling = static_cast<RopeScaling>(kind);
    config_.rope_scaling_factor = f.number("factor");
    if (config_.rope_scaling == RopeScaling::llama3) {
      config_.rope_low_freq_factor = f.number("low_freq_factor");
      config_.rope_high_freq_factor = f.number("high_freq_factor");
      f.at("original_max_position_embeddings");  // has no other value to fall back to
    }
    config_.rope_original_length =
        f.integer("original_max_position_embeddings", config_.max_position_embeddings);
    if (config_.rope_scaling == RopeScaling::dynamic && dynamic_from_longest &&
        config_.rope_original_length != config_.max_position_embeddings)
      f.refuse("original_max_position_embeddings",
               "{} contradicts max_position_embeddings, from which dynamic scaling starts here; the legal "
               "value is {}",
               config_.rope_original_length, config_.max_position_embeddings);
    if (config_.rope_scaling == RopeScaling::yarn) yarn(f);
  }

  void yarn(const Fields& f) {
    f.only("beta_fast", 32.0);
    f.only("beta_slow", 1.0);
    f.only("truncate", true);
    const double factor = config_.rope_scaling_factor;
    const double usual = factor <= 1 ? 1 : 0.1 * std::log(factor) + 1;
    if (f.has("attention_factor") && std::abs(f.number("attention_factor") - usual) > 1e-6 * usual)
      f.refuse("attention_factor", "{} is not what this program computes; the legal value is {}",
               f.number("attention_factor"), usual);
    if (f.has("mscale") && f.has("mscale_all_dim"))
      f.refuse("mscale", "is not what this program computes; leave it out");
  }

  const Fields& top_;
  ModelConfig& config_;
};

// What every format says in the same words.
void read_common(const Fields& f, ModelConfig& c, bool tied) {
  c.vocab_size = f.integer("vocab_size");
  c.d_model = f.integer("hidden_size");
  c.num_layers = f.integer("num_hidden_layers");
  c.tie_embeddings = f.flag("tie_word_embeddings", tied);
  c.initializer_range = f.number("initializer_range", c.initializer_range);
  f.only("hidden_act", "silu");
  if (f.has("quantization_config"))
    f.refuse("quantization_config", "quantized weights are not read; give a model of F32, BF16 or F16");
}

void read_attention(const Fields& f, ModelConfig& c, bool dynamic_from_longest) {
  c.d_ff = f.integer("intermediate_size");
  c.num_heads = f.integer("num_attention_heads");
  c.num_kv_heads = f.integer("num_key_value_heads", c.num_heads);
  if (c.num_kv_heads < 1)
    f.refuse("num_key_value_heads", "{} is out of range; it must divide num_attention_heads", c.num_kv_heads);
  c.head_dim = f.integer("head_dim", c.head_dim);
  if (f.has("head_dim") && c.head_dim < 1) f.refuse("head_dim", "{} is out of range", c.head_dim);
  c.norm_eps = f.number("rms_norm_eps", c.norm_eps);
  RopeReader(f, c).read(dynamic_from_longest);
  c.attention_bias = f.flag("attention_bias", c.attention_bias);
  c.mlp_bias = f.flag("mlp_bias", c.mlp_bias);
}

ModelConfig read_llama(const Fields& f) {
  ModelConfig c;
  read_common(f, c, false);
  c.attn_period = 1;
  c.attn_offset = 0;
  c.learned_residual = false;
  read_attention(f, c, true);
  if (c.d_ff < 1) f.refuse("intermediate_size", "{} is out of range; it must be at least 1", c.d_ff);
  return c;
}

// [0, infinity) is no limit at all; transformers writes infinity in two ways.
bool is_no_limit(const Json& limit) {
  if (!limit.is_array() || limit.size() != 2 || !limit[0].is_number() || limit[0].get<double>() > 0)
    return false;
  const Json& top = limit[1].is_object() && limit[1].contains("__float__") ? limit[1]["__float__"] : limit[1];
  return top == "Infinity";
}

ModelConfig read_mamba2(const Fields& f) {
  ModelConfig c;
  read_common(f, c, false);
  c.attn_period = 0;
  c.attn_offset = 0;
  c.learned_residual = false;
  c.attention_rope = false;
  c.ssd_position = SsdPosition::conv1d;
  c.ssd_gate = true;
  c.d_skip = true;
  const int64_t heads = f.integer("num_heads"), width = f.integer("head_dim");
  c.ssd_expand = f.integer("expand", 2);
  c.d_state = f.integer("state_size");
  c.num_groups = f.integer("n_groups");
  c.conv_kernel = f.integer("conv_kernel", 4);
  c.chunk = f.integer("chunk_size", 256);
  c.norm_eps = f.number("layer_norm_epsilon", 1e-5);
  f.only("use_bias", false);
  f.only("use_conv_bias", true);
  f.only("rms_norm", true);
  if (f.has("time_step_limit") && !is_no_limit(f.at("time_step_limit")))
    f.refuse("time_step_limit", "{} is not what this program computes; the legal value is [0.0, Infinity]",
             printable_json(f.at("time_step_limit")));
  constexpr int64_t kMax = 1 << 20;  // keeps the products below inside 64 bits; problems() knows the rest
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"num_heads", heads},
                                    {"head_dim", width},
                                    {"expand", c.ssd_expand},
                                    {"n_groups", c.num_groups},
                                    {"hidden_size", c.d_model}})
    if (value < 1 || value > kMax) f.refuse(name, "{} is out of range; legal are 1 to {}", value, kMax);
  if (c.d_model % width != 0) f.refuse("head_dim", "{} does not divide hidden_size {}", width, c.d_model);
  c.num_heads = c.d_model / width;
  if (heads * width != c.ssd_expand * c.d_model)
    f.refuse("num_heads", "{} contradicts expand {}, hidden_size {} and head_dim {}; the legal value is {}",
             heads, c.ssd_expand, c.d_model, width, c.ssd_expand * c.d_model / width);
  return c;
}

ModelConfig read_transxssm(const Fields& f) {
  static constexpr std::string_view kAttention[] = {"none", "rope"};
  static constexpr std::string_view kStateSpace[] = {"rope", "conv1d", "none"};
  ModelConfig c;
  read_common(f, c, c.tie_embeddings);
  read_attention(f, c, false);
  c.log_n_scale = f.flag("log_n_scale", c.log_n_scale);
  c.attn_period = f.integer("attn_layer_period", c.attn_period);
  c.attn_offset = f.integer("attn_layer_offset", c.attn_offset);
  c.layer_pattern = f.word("layer_pattern", "");
  if (c.attn_period == 0 && c.layer_pattern.find_first_not_of('S') == std::string::npos) c.layer_pattern = "";
  c.attention_rope = f.choice("attention_position", "rope", kAttention) == 1;
  c.d_state = f.integer("ssd_state_size", c.d_state);
  c.num_groups = f.integer("ssd_num_groups", c.num_heads);
  if (c.num_groups < 1)
    f.refuse("ssd_num_groups", "{} is out of range; it must divide the state-space heads", c.num_groups);
  c.chunk = f.integer("ssd_chunk_size", c.chunk);
  c.ssd_expand = f.integer("ssd_expand", c.ssd_expand);
  c.ssd_position = static_cast<SsdPosition>(f.choice("ssd_position", "rope", kStateSpace));
  c.ssd_gate = f.flag("ssd_gate", c.ssd_gate);
  c.d_skip = f.flag("ssd_skip", c.d_skip);
  c.conv_kernel = f.integer("ssd_conv_kernel", c.conv_kernel);
  c.learned_residual = f.flag("learned_residual", c.learned_residual);
  return c;
}

// Our names of fields in the sentences of problems(), and theirs.
struct FieldName {
  std::string_view ours, transxssm, mamba2;
};
constexpr FieldName kFieldNames[] = {
    {"d_model", "hidden_size", ""},
    {"num_layers", "num_hidden_layers", ""},
    {"num_heads", "num_attention_heads", "num_heads"},
    {"num_kv_heads", "num_key_value_heads", ""},
    {"d_ff", "intermediate_size", ""},
    {"d_state", "ssd_state_size", "state_size"},
    {"num_groups", "ssd_num_groups", "n_groups"},
    {"chunk", "ssd_chunk_size", "chunk_size"},
    {"attn_period", "attn_layer_period", ""},
    {"attn_offset", "attn_layer_offset", ""},
    {"rope_base", "rope_theta", ""},
    {"norm_eps", "rms_norm_eps", "layer_norm_epsilon"},
    {"ssd_expand", "ssd_expand", "expand"},
    {"conv_kernel", "ssd_conv_kernel", "conv_kernel"},
    {"rope_scaling_factor", "rope_scaling.factor", ""},
    {"rope_original_length", "rope_scaling.original_max_position_embeddings", ""},
    {"rope_low_freq_factor", "rope_scaling.low_freq_factor", ""},
    {"rope_high_freq_factor", "rope_scaling.high_freq_factor", ""},
};

std::string in_their_words(const std::string& problem, bool mamba2) {
  std::string result;
  for (size_t i = 0; i < problem.size();) {
    size_t end = i;
    while (end < problem.size() &&
           (std::isalnum(static_cast<unsigned char>(problem[end])) || problem[end] == '_'))
      ++end;
    if (end == i) {
      result += problem[i++];
      continue;
    }
    std::string_view word = std::string_view(problem).substr(i, end - i);
    for (const FieldName& name : kFieldNames) {
      if (word != name.ours) continue;
      word = mamba2 && !name.mamba2.empty() ? name.mamba2 : name.transxssm;
      break;
    }
    result += word;
    i = end;
  }
  return result;
}

Json parse(std::string_view text) {
  if (std::ssize(text) > kMaxBytes)
    throw CheckpointError("config.json: has {} bytes; at most {} are read", text.size(), kMaxBytes);
  // Quoting a number makes the text longer.
  const JsonLimits limits{.max_bytes = 2 * kMaxBytes, .max_depth = 16, .max_values = 100'000};
  Json json = parse_json<CheckpointError>(with_infinity_quoted(text), "config.json", limits);
  if (!json.is_object()) throw CheckpointError("config.json: is not a JSON object");
  return json;
}

}  // namespace

ModelConfig model_config_from_hugging_face(std::string_view config_json) {
  static constexpr std::string_view kTypes[] = {"transxssm", "llama", "mamba2"};
  const Json json = parse(config_json);
  const Fields fields(json);
  fields.at("model_type");
  const size_t type = fields.choice("model_type", "", kTypes);
  const bool mamba2 = type == 2;
  ModelConfig config = type == 0   ? read_transxssm(fields)
                       : type == 1 ? read_llama(fields)
                                   : read_mamba2(fields);
  // A mistake may be of a field the file does not give: the sentence names it all the same.
  if (const std::vector<std::string> found = problems(config); !found.empty())
    throw CheckpointError("config.json: {}",
                          in_their_words(fmt::format("{}", fmt::join(found, "; ")), mamba2));
  if (config.head_dim * config.num_heads == config.d_model) config.head_dim = 0;
  if (config.num_kv_heads == config.num_heads) config.num_kv_heads = 0;
  if (config.num_groups == config.num_heads) config.num_groups = 0;
  return config;
}

}  // namespace transxssm
