#include "model/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <type_traits>

#include "model/model.pb.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

// The words of an enumeration in text, in the order of its values.
constexpr std::array<std::string_view, 3> words_of(SsdPosition) {
  return {"rope", "conv1d", "none"};
}
constexpr std::array<std::string_view, 5> words_of(RopeScaling) {
  return {"none", "linear", "dynamic", "yarn", "llama3"};
}

template <class Enum>
Enum from_word(const char* field, std::string_view word) {
  constexpr auto words = words_of(Enum{});
  const auto found = std::find(words.begin(), words.end(), word);
  if (found == words.end())
    throw UsageError("{}: \"{}\" is not known; legal values are {}", field, printable(word),
                     fmt::join(words, ", "));
  return static_cast<Enum>(found - words.begin());
}

// One row a field, in order of its number: calls visit(name, member of `config`, getters and setters of
// `message`).
template <class Config, class Message, class Visit>
void for_each_field(Config& config, Message& message, Visit&& visit) {
#define FIELD(name)                                                                             \
  visit(                                                                                        \
      #name, config.name, [&] { return message.has_##name(); }, [&] { return message.name(); }, \
      [&](const auto& value) {                                                                  \
        if constexpr (!std::is_const_v<Message>) message.set_##name(value);                     \
      })
  FIELD(vocab_size);
  FIELD(d_model);
  FIELD(num_layers);
  FIELD(num_heads);
  FIELD(num_kv_heads);
  FIELD(d_ff);
  FIELD(d_state);
  FIELD(num_groups);
  FIELD(chunk);
  FIELD(attn_period);
  FIELD(attn_offset);
  FIELD(rope_base);
  FIELD(norm_eps);
  FIELD(learned_residual);
  FIELD(tie_embeddings);
  FIELD(d_skip);
  FIELD(initializer_range);
  FIELD(max_position_embeddings);
  FIELD(layer_pattern);
  FIELD(attention_rope);
  FIELD(ssd_position);
  FIELD(ssd_expand);
  FIELD(ssd_gate);
  FIELD(conv_kernel);
  FIELD(rope_scaling);
  FIELD(rope_scaling_factor);
  FIELD(rope_original_length);
  FIELD(log_n_scale);
  FIELD(head_dim);
  FIELD(attention_bias);
  FIELD(mlp_bias);
  FIELD(rope_low_freq_factor);
  FIELD(rope_high_freq_factor);
#undef FIELD
}

class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text.empty()) text = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  std::string text;
};

enum class Kind { transxssm, llama, mamba2, jamba };

struct Preset {
  const char* name;
  Kind kind;
  int64_t vocab_size, d_model, num_layers, num_heads, num_groups, d_ff, d_state, chunk;
};

// Baselines have the width of the hybrid of the same name. What they are free in (layers of mamba2, d_ff of
// the others) is chosen to match its number of parameters.
constexpr std::array<Preset, 11> kPresets{{
    {"tiny", Kind::transxssm, 8192, 256, 8, 4, 0, 704, 64, 64},
    {"transxssm-320m", Kind::transxssm, 50304, 768, 24, 12, 0, 3584, 128, 256},
    {"transxssm-1.3b", Kind::transxssm, 50304, 2048, 24, 32, 0, 4224, 128, 256},
    {"transxssm-7b", Kind::transxssm, 50304, 4096, 32, 32, 0, 11008, 128, 256},
    {"transxssm-13b", Kind::transxssm, 50304, 5120, 40, 40, 0, 13824, 128, 256},
    {"llama-320m", Kind::llama, 50304, 768, 24, 12, 0, 4096, 128, 256},
    {"llama-1.3b", Kind::llama, 50304, 2048, 24, 32, 0, 5376, 128, 256},
    {"mamba2-320m", Kind::mamba2, 50304, 768, 74, 12, 1, 0, 128, 256},
    {"mamba2-1.3b", Kind::mamba2, 50304, 2048, 46, 32, 1, 0, 128, 256},
    {"jamba-320m", Kind::jamba, 50304, 768, 24, 12, 8, 2944, 128, 256},
    {"jamba-1.3b", Kind::jamba, 50304, 2048, 24, 32, 8, 3584, 128, 256},
}};

// "A", "A and B": the values nearest to `value` in [1, max] that are legal.
std::string nearest_values(int64_t value, int64_t max, const std::function<bool(int64_t)>& legal) {
  std::string text;
  for (int64_t v = std::min(value - 1, max); v >= 1 && text.empty(); --v)
    if (legal(v)) text = std::to_string(v);
  for (int64_t v = std::max<int64_t>(value + 1, 1); v <= max; ++v)
    if (legal(v)) {
      text += (text.empty() ? "" : " and ") + std::to_string(v);
      break;
    }
  return text;
}

class Problems {
 public:
  // Whether `value` lies in [min, max]; a problem where not.
  bool range(const char* name, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) return true;
    if (value == 0 && min > 0)
      list.push_back(fmt::format("{}: is not set; give a value from {} to {}, or a preset", name, min, max));
    else
      list.push_back(fmt::format("{}: {} is out of range; the nearest legal value is {}", name, value,
                                 value < min ? min : max));
    return false;
  }
  void multiple_of_8(const char* name, int64_t value) {
    if (value % 8 == 0) return;
    const int64_t below = value / 8 * 8;
    list.push_back(fmt::format("{}: {} is not a multiple of 8; the nearest legal value is {}", name, value,
                               below == 0 || value - below > 4 ? below + 8 : below));
  }
  void divides(const char* name, int64_t value, const char* of_name, int64_t of) {
    if (of % value == 0) return;
    list.push_back(fmt::format("{}: {} does not divide {} {}; the nearest legal values are {}", name, value,
                               of_name, of,
                               nearest_values(value, of, [of](int64_t v) { return of % v == 0; })));
  }
  // Whether heads have a legal width; a problem where not. The scan takes multiples of 8, a rotation pairs.
  bool head_width(const ModelConfig& c, bool state_space, bool divisible) {
    constexpr int64_t kWidest = 1 << 12, kAllHeads = 1 << 22;
    const int64_t unit = state_space ? 8 : 2, least = state_space ? 8 : 4;
    if (c.head_dim != 0) {
      if (!range("head_dim", c.head_dim, least, kWidest)) return false;
      if (c.head_dim % unit != 0)
        list.push_back(fmt::format("head_dim: {} is not a multiple of {}; the nearest legal value is {}",
                                   c.head_dim, unit, c.head_dim / unit * unit));
      if (c.num_heads > kAllHeads / c.head_dim)
        list.push_back(
            fmt::format("head_dim: {} x num_heads {} is more than {}; the nearest legal value is {}",
                        c.head_dim, c.num_heads, kAllHeads, kAllHeads / c.num_heads / unit * unit));
      return c.head_dim % unit == 0 && c.num_heads <= kAllHeads / c.head_dim;
    }
    if (!divisible) return false;
    const auto legal = [&](int64_t h) {
      return c.d_model % h == 0 && c.d_model / h % unit == 0 && c.d_model / h >= least;
    };
    if (legal(c.num_heads)) return true;
    list.push_back(
        fmt::format("num_heads: {} does not cut d_model {} into heads of a multiple of {}; the nearest legal "
                    "values are {}",
                    c.num_heads, c.d_model, unit, nearest_values(c.num_heads, c.d_model / least, legal)));
    return false;
  }
  void layer_pattern(const ModelConfig& c) {
    const size_t wrong = c.layer_pattern.find_first_not_of("AS");
    if (wrong != std::string::npos)
      list.push_back(fmt::format("layer_pattern: letter {} is \"{}\"; legal letters are A and S", wrong + 1,
                                 printable(std::string_view(c.layer_pattern).substr(wrong, 1))));
    if (static_cast<int64_t>(c.layer_pattern.size()) != c.num_layers)
      list.push_back(fmt::format("layer_pattern: has {} letters; num_layers {} needs one a layer",
                                 c.layer_pattern.size(), c.num_layers));
  }
  void between(const char* name, double value, double min, double max) {
    if (value > min && value <= max) return;
    list.push_back(
        fmt::format("{}: {} is out of range; it must be above {} and at most {}", name, value, min, max));
  }
  std::vector<std::string> list;
};

bool shares(int64_t heads, int tp) {
  return heads % tp == 0 || tp % heads == 0;
}

}  // namespace

int64_t ModelConfig::num_attention_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < num_layers; ++layer) count += is_attention(layer) ? 1 : 0;
  return count;
}

ModelConfig model_config_from_text(std::string_view textproto) {
  constexpr size_t kMaxBytes = 1 << 20;
  if (textproto.size() > kMaxBytes)
    throw UsageError("model configuration: {} bytes of text; at most {} are read", textproto.size(),
                     kMaxBytes);
  proto::ModelConfig message;
  google::protobuf::TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(std::string(textproto), &message))
    throw UsageError("model configuration:{}", printable(error.text, 400));
  ModelConfig config = message.has_preset() ? model_preset(message.preset()) : ModelConfig();
  for_each_field(config, message, [](const char* name, auto& field, auto&& has, auto&& get, auto&&) {
    using Field = std::remove_cvref_t<decltype(field)>;
    if (!has()) return;
    if constexpr (std::is_enum_v<Field>)
      field = from_word<Field>(name, get());
    else
      field = get();
  });
  return config;
}

std::string to_text(const ModelConfig& config) {
  proto::ModelConfig message;
  for_each_field(config, message, [](const char*, const auto& field, auto&&, auto&&, auto&& set) {
    if constexpr (std::is_enum_v<std::remove_cvref_t<decltype(field)>>)
      set(std::string(words_of(field)[static_cast<size_t>(field)]));
    else
      set(field);
  });
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

std::vector<std::string> problems(const ModelConfig& c) {
  // Caps keep every product of two sizes, and the bytes of a tensor, far inside 64 bits.
  constexpr int64_t kWide = 1 << 20;
  Problems p;
  p.range("vocab_size", c.vocab_size, 1, 1 << 24);
  const bool width = p.range("d_model", c.d_model, 8, kWide);
  const bool layers = p.range("num_layers", c.num_layers, 1, 1 << 16);
  bool heads = p.range("num_heads", c.num_heads, 1, kWide);
  p.range("d_ff", c.d_ff, 0, 1 << 22);
  const bool state = p.range("d_state", c.d_state, 8, 1 << 16);
  const bool kv = p.range("num_kv_heads", c.num_kv_heads, 0, kWide);
  const bool groups = p.range("num_groups", c.num_groups, 0, kWide);
  const bool chunk = p.range("chunk", c.chunk, 8, 1 << 16);
  const bool period = p.range("attn_period", c.attn_period, 0, 1 << 16);
  if (period && c.attn_period > 0 && (c.attn_offset < 0 || c.attn_offset >= c.attn_period))
    p.list.push_back(
        fmt::format("attn_offset: {} is out of range; with attn_period {} the nearest legal value is {}",
                    c.attn_offset, c.attn_period, c.attn_offset < 0 ? 0 : c.attn_period - 1));
  const size_t before_pattern = p.list.size();
  if (layers && !c.layer_pattern.empty()) p.layer_pattern(c);
  const bool pattern = layers && period && p.list.size() == before_pattern;
  const bool expand = p.range("ssd_expand", c.ssd_expand, 1, 16);
  p.range("conv_kernel", c.conv_kernel, 1, 8);
  if (width) p.multiple_of_8("d_model", c.d_model);
  const bool state_space = pattern && c.num_attention_layers() < c.num_layers;
  heads = p.head_width(c, state_space || !pattern, width && heads && c.d_model % 8 == 0) && heads;
  if (heads && kv) p.divides("num_kv_heads", c.kv_heads(), "num_heads", c.num_heads);
  if (state_space) {
    if (state) p.multiple_of_8("d_state", c.d_state);
    if (chunk) p.multiple_of_8("chunk", c.chunk);
    if (heads && groups && expand && c.ssd_expand == 1)
      p.divides("num_groups", c.groups(), "num_heads", c.num_heads);
    else if (heads && groups && expand)
      p.divides("num_groups", c.groups(), "ssd_expand x num_heads", c.ssd_heads());
  }
  p.between("rope_base", c.rope_base, 1, 1e12);
  p.between("norm_eps", c.norm_eps, 0, 1);
  p.between("initializer_range", c.initializer_range, 0, 100);
  constexpr int64_t kLongest = int64_t{1} << 31;
  const bool longest = p.range("max_position_embeddings", c.max_position_embeddings, 1, kLongest);
  if (!(c.rope_scaling_factor >= 1 && c.rope_scaling_factor <= 1e6))
    p.list.push_back(
        fmt::format("rope_scaling_factor: {} is out of range; it must be at least 1 and at most 1000000",
                    c.rope_scaling_factor));
  p.range("rope_original_length", c.rope_original_length, 2, kLongest);
  p.between("rope_low_freq_factor", c.rope_low_freq_factor, 0, 1e6);
  p.between("rope_high_freq_factor", c.rope_high_freq_factor, 0, 1e6);
  if (c.rope_scaling == RopeScaling::llama3 && !(c.rope_low_freq_factor < c.rope_high_freq_factor))
    p.list.push_back(fmt::format("rope_high_freq_factor: {} must be above rope_low_freq_factor {}",
                                 c.rope_high_freq_factor, c.rope_low_freq_factor));
  if (longest && c.log_n_scale && c.rope_scaling == RopeScaling::none && c.max_position_embeddings < 2)
    p.list.push_back(
        "max_position_embeddings: 1 is out of range with log_n_scale; the nearest legal value is 2");
  return p.list;
}

std::vector<std::string> mesh_problems(const ModelConfig& c, int pp, int tp) {
  std::vector<std::string> list;
  if (pp < 1 || pp > c.num_layers)
    list.push_back(fmt::format("parallel.pp: {} stages for num_layers {}; legal values are 1 to {}", pp,
                               c.num_layers, c.num_layers));
  const bool attention = c.num_attention_layers() > 0;
  const bool state_space = c.num_attention_layers() < c.num_layers;
  const auto fits = [&](int t) {
    return t >= 1 && c.num_heads % t == 0 && c.d_ff % t == 0 && (!attention || shares(c.kv_heads(), t)) &&
           (!state_space || shares(c.groups(), t));
  };
  if (fits(tp)) return list;
  std::vector<std::string> reasons;
  if (tp < 1) reasons.push_back("is not positive");
  if (tp >= 1 && c.num_heads % tp != 0)
    reasons.push_back(fmt::format("does not divide num_heads {}", c.num_heads));
  if (tp >= 1 && c.d_ff % tp != 0) reasons.push_back(fmt::format("does not divide d_ff {}", c.d_ff));
  if (tp >= 1 && attention && !shares(c.kv_heads(), tp))
    reasons.push_back(fmt::format("neither divides nor is a multiple of num_kv_heads {}", c.kv_heads()));
  if (tp >= 1 && state_space && !shares(c.groups(), tp))
    reasons.push_back(fmt::format("neither divides nor is a multiple of num_groups {}", c.groups()));
  // There may be a million heads.
  std::string legal;
  for (int t = 1; t <= c.num_heads; ++t)
    if (fits(t)) legal += (legal.empty() ? "" : ", ") + std::to_string(t);
  for (const std::string& reason : reasons)
    list.push_back(fmt::format("parallel.tp: {} {}; legal values are {}", tp, reason, legal));
  return list;
}

std::vector<std::string> model_preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

ModelConfig model_preset(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    ModelConfig config;
    config.vocab_size = preset.vocab_size;
    config.d_model = preset.d_model;
    config.num_layers = preset.num_layers;
    config.num_heads = preset.num_heads;
    config.num_groups = preset.num_groups;
    config.d_ff = preset.d_ff;
    config.d_state = preset.d_state;
    config.chunk = preset.chunk;
    config.learned_residual = preset.kind == Kind::transxssm;
    if (preset.kind == Kind::llama) {
      config.attn_period = 1;
      config.attn_offset = 0;
    }
    if (preset.kind == Kind::mamba2) {
      config.attn_period = 0;
      config.attn_offset = 0;
    }
    if (preset.kind == Kind::mamba2 || preset.kind == Kind::jamba) {
      config.attention_rope = false;
      config.ssd_position = SsdPosition::conv1d;
      config.ssd_expand = 2;
      config.ssd_gate = true;
      config.d_skip = true;
    }
    return config;
  }
  throw UsageError("preset: \"{}\" is not known; known presets are {}", printable(name),
                   fmt::join(model_preset_names(), ", "));
}

}  // namespace transxssm
