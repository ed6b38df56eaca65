#include "launch/config.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "launch/config_reader.h"
#include "launch/device.h"
#include "launch/nearest.h"
#include "launch/run_length.h"
#include "launch/training_data.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

double as_double(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    default:
      return 0;
  }
}

// Range and legal values of one field that is set.
void check_rule(ConfigReader& reader, const Message& message, const FieldDescriptor& field,
                const proto::Rule& rule, const std::string& path) {
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const std::string value = message.GetReflection()->GetString(message, &field);
    const std::vector<std::string> choices(rule.choices().begin(), rule.choices().end());
    if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end())
      reader.add_mistake(path, fmt::format("\"{}\" is not known; legal values are {}{}", printable(value),
                                           join(choices), did_you_mean(value, choices)));
    if (rule.required() && value.empty()) reader.add_mistake(path, "is empty");
    return;
  }
  const double value = as_double(message, field);
  if (rule.has_min() && (value < rule.min() || (rule.min_excluded() && value == rule.min())))
    reader.add_mistake(
        path,
        fmt::format("{} is out of range; {} {}", value,
                    rule.min_excluded() ? "it must be above" : "the nearest legal value is", rule.min()));
  if (rule.has_max() && (value > rule.max() || (rule.max_excluded() && value == rule.max())))
    reader.add_mistake(
        path,
        fmt::format("{} is out of range; {} {}", value,
                    rule.max_excluded() ? "it must be below" : "the nearest legal value is", rule.max()));
}

// Defaults for what is not set and the rule of every field, section by section.
void apply_rules(ConfigReader& reader, Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    const proto::Rule& rule = field.options().GetExtension(proto::rule);
    const std::string child = path.empty() ? field.name() : path + "." + field.name();
    if (field.is_repeated()) {
      if (rule.required() && reflection.FieldSize(message, &field) == 0 && !reader.has_mistake(child))
        reader.add_mistake(child, "is missing");
      for (int k = 0; k < reflection.FieldSize(message, &field); ++k)
        apply_rules(reader, *reflection.MutableRepeatedMessage(&message, &field, k),
                    fmt::format("{}[{}]", child, k));
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      apply_rules(reader, *reflection.MutableMessage(&message, &field), child);
    } else if (!reader.has_mistake(child)) {
      if (reflection.HasField(message, &field)) {
        check_rule(reader, message, field, rule, child);
      } else if (rule.required()) {
        reader.add_mistake(child, "is missing");
      } else if (rule.has_standard()) {
        const bool set = reader.set_from_text(message, field, child, rule.standard());
        TRANSXSSM_CHECK(set, "default of {}", child);
      }
    }
  }
}

// Runs `check`; what it throws, "path: what is wrong" below `section`, becomes a mistake. False where it
// threw.
template <class Check>
bool add_complaint(ConfigReader& reader, const std::string& section, const Check& check) {
  try {
    check();
    return true;
  } catch (const UsageError& error) {
    const std::string what = error.what();
    const size_t colon = what.find(": ");
    reader.add_mistake(section + what.substr(0, colon), what.substr(colon + 2));
    return false;
  }
}

// Fills the section from its preset and checks it.
void resolve_model(ConfigReader& reader, TrainConfig& config) {
  ModelConfig model;
  if (!add_complaint(reader, "model.", [&] { model = model_config(config); })) return;
  for (const std::string& problem : problems(model)) {
    const size_t colon = problem.find(": ");
    const std::string path = "model." + problem.substr(0, colon);
    if (!reader.has_mistake(path)) reader.add_mistake(path, problem.substr(colon + 2));
  }
  google::protobuf::TextFormat::ParseFromString(to_text(model), config.mutable_model());
}

void check_schedule(ConfigReader& reader, const TrainConfig& config) {
  const proto::ScheduleConfig& schedule = config.schedule();
  if (reader.has_mistake("schedule.steps") || reader.has_mistake("schedule.tokens")) return;
  if (schedule.steps() > 0 && schedule.tokens() > 0) {
    reader.add_mistake("schedule.tokens", "is set beside schedule.steps; give one of the two");
  } else if (schedule.steps() == 0 && schedule.tokens() == 0) {
    reader.add_mistake("schedule.steps", "is missing; give schedule.steps or schedule.tokens");
  } else if (!reader.has_mistake("parallel.global_batch") && !reader.has_mistake("data.sequence_length")) {
    add_complaint(reader, "", [&] { steps_left(config); });
  }
}

// A held-out fraction is for runs without a validation file; only its default gives way silently.
void resolve_validation(ConfigReader& reader, TrainConfig& config, bool fraction_given) {
  proto::DataConfig& data = *config.mutable_data();
  if (data.validation().empty() || data.validation_fraction() == 0) return;
  if (fraction_given)
    reader.add_mistake("data.validation_fraction", "is set beside data.validation; give one of the two");
  else
    data.set_validation_fraction(0);
}

// Meshes of `world` ranks that the model allows, as text.
std::string legal_meshes(const ModelConfig& model, int world) {
  constexpr int kShown = 8;
  std::string text;
  int count = 0;
  for (int tp = 1; tp <= world; ++tp)
    for (int pp = 1; pp * tp <= world; ++pp) {
      if (world % (pp * tp) != 0 || !mesh_problems(model, pp, tp).empty()) continue;
      if (++count <= kShown)
        text += fmt::format("{}pp {} dp {} tp {}", count == 1 ? "" : ", ", pp, world / pp / tp, tp);
    }
  if (count > kShown) text += fmt::format(" and {} more", count - kShown);
  return text;
}

void check_device(ConfigReader& reader, const TrainConfig& config) {
  const std::string& device = config.parallel().device();
  if (!reader.has_mistake("parallel.device") && !is_device_choice(device))
    reader.add_mistake("parallel.device",
                       fmt::format("\"{}\" is not known; legal values are auto, cpu, cuda, cuda:N{}",
                                   printable(device), did_you_mean(device, {"auto", "cpu", "cuda"})));
}

void resolve_mesh(ConfigReader& reader, TrainConfig& config, int world_size) {
  proto::ParallelConfig& parallel = *config.mutable_parallel();
  for (const char* axis : {"pp", "dp", "cp", "tp"})
    if (reader.has_mistake(std::string("parallel.") + axis)) return;
  if (!reader.has_mistake("model")) {
    const ModelConfig model = model_config(config);
    for (const std::string& problem : mesh_problems(model, parallel.pp(), parallel.tp())) {
      const size_t colon = problem.find(": ");
      reader.add_mistake(problem.substr(0, colon), problem.substr(colon + 2));
    }
  }
  if (world_size > 0) {
    const int64_t others = int64_t{parallel.pp()} * parallel.cp() * parallel.tp();
    const std::string legal = reader.has_mistake("model")
                                  ? ""
                                  : fmt::format("; legal meshes of {} ranks: {}", world_size,
                                                legal_meshes(model_config(config), world_size));
    if (parallel.dp() == 0 && world_size % others == 0) {
      parallel.set_dp(static_cast<int>(world_size / others));
    } else if (parallel.dp() == 0) {
      reader.add_mistake(
          "parallel.dp",
          fmt::format("{} ranks cannot be cut into replicas of pp {} x cp {} x tp {} = {} ranks{}",
                      world_size, parallel.pp(), parallel.cp(), parallel.tp(), others, legal));
      return;
    } else if (parallel.dp() * others != world_size) {
      reader.add_mistake("parallel.dp",
                         fmt::format("pp {} x dp {} x cp {} x tp {} = {}, but the job has {} ranks{}",
                                     parallel.pp(), parallel.dp(), parallel.cp(), parallel.tp(),
                                     parallel.dp() * others, world_size, legal));
      return;
    }
  }
  if (parallel.dp() == 0 || reader.has_mistake("parallel.global_batch") ||
      reader.has_mistake("parallel.microbatch_size"))
    return;
  const int64_t batch = parallel.global_batch();
  if (parallel.microbatch_size() > batch) {
    reader.add_mistake("parallel.microbatch_size",
                       fmt::format("{} is more than global_batch {}; legal values divide {}",
                                   parallel.microbatch_size(), batch, batch));
    return;
  }
  const int64_t rows = parallel.dp() * parallel.microbatch_size();
  if (batch % rows == 0) return;
  const int64_t below = batch / rows * rows;
  reader.add_mistake(
      "parallel.global_batch",
      fmt::format("{} rows are no multiple of dp {} x microbatch_size {} = {}; the nearest legal value{} "
                  "{}{}",
                  batch, parallel.dp(), parallel.microbatch_size(), rows, below == 0 ? " is" : "s are",
                  below == 0 ? "" : std::to_string(below) + " and ", below + rows));
}

TrainConfig parse(const std::string& text, const std::string& name, const std::vector<std::string>& overrides,
                  int world_size, bool look_for_files) {
  TrainConfig config;
  ConfigReader reader(config, name);
  const bool complete = name.ends_with(".json") ? reader.read_json(text) : reader.read_textproto(text);
  for (const std::string& assignment : overrides) reader.read_override(assignment);
  if (complete) {
    const bool fraction_given = config.data().validation_fraction() > 0;
    apply_rules(reader, config, "");
    resolve_model(reader, config);
    check_schedule(reader, config);
    resolve_validation(reader, config, fraction_given);
    resolve_mesh(reader, config, world_size);
    check_device(reader, config);
    // Files that are missing are told beside mistakes; alone, they are for those who open them.
    if (look_for_files && !reader.mistakes().empty())
      for (const auto& [field, what] : missing_files(config)) reader.add_mistake(field, what);
  }
  const std::vector<std::string>& mistakes = reader.mistakes();
  if (mistakes.size() == 1) throw UsageError("{}", mistakes[0]);
  if (!mistakes.empty())
    throw UsageError("{}{} mistakes in the configuration:\n  {}",
                     mistakes.size() == ConfigReader::kMaxMistakes ? "at least " : "", mistakes.size(),
                     fmt::join(mistakes, "\n  "));
  return config;
}

}  // namespace

TrainConfig parse_config(const std::string& text, const std::string& name,
                         const std::vector<std::string>& overrides, int world_size) {
  return parse(text, name, overrides, world_size, false);
}

TrainConfig load_config(const std::string& file, const std::vector<std::string>& overrides, int world_size) {
  if (file.empty()) return parse("", "configuration", overrides, world_size, true);
  std::ifstream stream(file, std::ios::binary);
  std::string text(kMaxConfigBytes + 1, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(text.size())) && !stream.eof())
    throw UsageError("configuration {} cannot be read: {}", file, std::strerror(errno));
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > kMaxConfigBytes)
    throw UsageError("configuration {} has more than {} bytes; is it the right file?", file, kMaxConfigBytes);
  return parse(text, file, overrides, world_size, true);
}

std::string to_text(const TrainConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config, &text);
  return text;
}

ModelConfig model_config(const TrainConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config.model(), &text);
  return model_config_from_text(text);
}

int64_t tokens_per_step(const TrainConfig& config) {
  return config.parallel().global_batch() * config.data().sequence_length();
}

int64_t num_microbatches(const TrainConfig& config) {
  return config.parallel().global_batch() / (config.parallel().dp() * config.parallel().microbatch_size());
}

}  // namespace transxssm
