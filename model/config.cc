#include "model/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <array>
#include <cmath>
#include <functional>

#include "model/model.pb.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

// One row a field: calls visit(name, member of `config`, getters and setters of `message`).
template <class Config, class Message, class Visit>
void for_each_field(Config& config, Message& message, Visit&& visit) {
#define FIELD(name)                                                                      \
  visit(                                                                                 \
      config.name, [&] { return message.has_##name(); }, [&] { return message.name(); }, \
      [&](auto value) {                                                                  \
        if constexpr (!std::is_const_v<Message>) message.set_##name(value);              \
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
#undef FIELD
}

class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text.empty()) text = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  std::string text;
};

struct Preset {
  const char* name;
  int64_t vocab_size, d_model, num_layers, num_heads, d_ff, d_state, chunk;
  bool state_space;  // the 7:1 hybrid; else attention only with plain residuals
};

constexpr std::array<Preset, 7> kPresets{{
    {"tiny", 8192, 256, 8, 4, 704, 64, 64, true},
    {"transxssm-320m", 50304, 768, 24, 12, 3584, 128, 256, true},
    {"transxssm-1.3b", 50304, 2048, 24, 32, 4224, 128, 256, true},
    {"transxssm-7b", 50304, 4096, 32, 32, 11008, 128, 256, true},
    {"transxssm-13b", 50304, 5120, 40, 40, 13824, 128, 256, true},
    {"llama-320m", 50304, 768, 24, 12, 4096, 128, 256, false},
    {"llama-1.3b", 50304, 2048, 24, 32, 5376, 128, 256, false},
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
    throw UsageError("model configuration:{}", error.text);
  ModelConfig config = message.has_preset() ? model_preset(message.preset()) : ModelConfig();
  for_each_field(config, message, [](auto& field, auto&& has, auto&& get, auto&&) {
    if (has()) field = get();
  });
  return config;
}

std::string to_text(const ModelConfig& config) {
  proto::ModelConfig message;
  for_each_field(config, message, [](const auto& field, auto&&, auto&&, auto&& set) { set(field); });
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
  p.range("d_ff", c.d_ff, 1, 1 << 22);
  const bool state = p.range("d_state", c.d_state, 8, 1 << 16);
  const bool kv = p.range("num_kv_heads", c.num_kv_heads, 0, kWide);
  const bool groups = p.range("num_groups", c.num_groups, 0, kWide);
  const bool chunk = p.range("chunk", c.chunk, 8, 1 << 16);
  const bool period = p.range("attn_period", c.attn_period, 1, 1 << 16);
  if (period && (c.attn_offset < 0 || c.attn_offset >= c.attn_period))
    p.list.push_back(
        fmt::format("attn_offset: {} is out of range; with attn_period {} the nearest legal value is {}",
                    c.attn_offset, c.attn_period, c.attn_offset < 0 ? 0 : c.attn_period - 1));
  if (width) p.multiple_of_8("d_model", c.d_model);
  if (width && heads && c.d_model % 8 == 0) {
    const auto legal = [&](int64_t h) { return c.d_model % h == 0 && c.d_model / h % 8 == 0; };
    heads = legal(c.num_heads);
    if (!heads)
      p.list.push_back(fmt::format(
          "num_heads: {} does not cut d_model {} into heads of a multiple of 8; the nearest legal "
          "values are {}",
          c.num_heads, c.d_model, nearest_values(c.num_heads, c.d_model / 8, legal)));
  }
  if (heads && kv) p.divides("num_kv_heads", c.kv_heads(), "num_heads", c.num_heads);
  const bool state_space = layers && period && c.num_attention_layers() < c.num_layers;
  if (state_space) {
    if (state) p.multiple_of_8("d_state", c.d_state);
    if (chunk) p.multiple_of_8("chunk", c.chunk);
    if (heads && groups) p.divides("num_groups", c.groups(), "num_heads", c.num_heads);
  }
  p.between("rope_base", c.rope_base, 1, 1e12);
  p.between("norm_eps", c.norm_eps, 0, 1);
  p.between("initializer_range", c.initializer_range, 0, 100);
  p.range("max_position_embeddings", c.max_position_embeddings, 1, int64_t{1} << 31);
  return p.list;
}

std::vector<std::string> mesh_problems(const ModelConfig& c, int pp, int tp) {
  std::vector<std::string> list;
  if (pp < 1 || pp > c.num_layers)
    list.push_back(fmt::format("parallel.pp: {} stages for num_layers {}; legal values are 1 to {}", pp,
                               c.num_layers, c.num_layers));
  const bool attention = c.num_attention_layers() > 0;
  const bool state_space = c.num_attention_layers() < c.num_layers;
  const auto wrong = [&](int t) {
    std::vector<std::string> reasons;
    if (t < 1) return std::vector<std::string>{"is not positive"};
    if (c.num_heads % t != 0) reasons.push_back(fmt::format("does not divide num_heads {}", c.num_heads));
    if (c.d_ff % t != 0) reasons.push_back(fmt::format("does not divide d_ff {}", c.d_ff));
    if (attention && !shares(c.kv_heads(), t))
      reasons.push_back(fmt::format("neither divides nor is a multiple of num_kv_heads {}", c.kv_heads()));
    if (state_space && !shares(c.groups(), t))
      reasons.push_back(fmt::format("neither divides nor is a multiple of num_groups {}", c.groups()));
    return reasons;
  };
  const std::vector<std::string> reasons = wrong(tp);
  if (reasons.empty()) return list;
  std::string legal;
  for (int t = 1; t <= c.num_heads; ++t)
    if (wrong(t).empty()) legal += (legal.empty() ? "" : ", ") + std::to_string(t);
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
    config.d_ff = preset.d_ff;
    config.d_state = preset.d_state;
    config.chunk = preset.chunk;
    config.attn_period = preset.state_space ? 8 : 1;
    config.attn_offset = preset.state_space ? 7 : 0;
    config.learned_residual = preset.state_space;
    return config;
  }
  throw UsageError("preset: \"{}\" is not known; known presets are {}", name,
                   fmt::join(model_preset_names(), ", "));
}

}  // namespace transxssm
