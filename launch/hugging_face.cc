#include "launch/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "checkpoint/checkpoint.h"
#include "checkpoint/hugging_face.h"
#include "launch/python_files.h"
#include "launch/version.h"
#include "parallel/local.h"
#include "runtime/crc32c.h"
#include "runtime/data/tokenizer.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kHead = "lm_head.weight";

std::string read_text(FileSystem& files, const std::string& path, int64_t max_bytes) {
  try {
    return read_file(files, followed(path), max_bytes);
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: {}", path, error.what());
  }
}

// What older versions of transformers wrote beside the weights: frequencies, their tables and positions,
// which are computed.
bool is_computed(const std::string& name) {
  constexpr std::string_view kTables[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                          "rotary_emb.sin_cached", "position_ids"};
  return std::any_of(std::begin(kTables), std::end(kTables), [&](std::string_view table) {
    return name.ends_with(table) &&
           (name.size() == table.size() || name[name.size() - table.size() - 1] == '.');
  });
}

// The tensors of the file that the model is read from: its own names, or those of a network saved without its
// head, which lack the prefix.
std::vector<HfTensor> tensors_in(const WeightFolder& weights, const ModelConfig& config) {
  std::vector<HfTensor> tensors = hugging_face_tensors(config);
  const std::string prefix = hugging_face_prefix(hugging_face_format(config));
  const auto prefixed = [&](const std::string& name) { return name.starts_with(prefix); };
  const auto unprefixed = [&](const std::string& name) { return name.substr(prefix.size()); };
  const bool whole = std::any_of(tensors.begin(), tensors.end(), [&](const HfTensor& tensor) {
    return prefixed(tensor.name) && weights.has(tensor.name);
  });
  if (whole || !weights.has(unprefixed(tensors.front().name))) return tensors;
  for (HfTensor& tensor : tensors)
    if (prefixed(tensor.name)) tensor.name = unprefixed(tensor.name);
  return tensors;
}

// A tied head that is in the file all the same must be the embedding.
void check_tied_head(const WeightFolder& weights, const HfTensor& embedding) {
  if (weights.read(kHead) == weights.read(embedding.name)) return;
  throw CheckpointError(
      "{}: tensor {} differs from {}, though config.json says tie_word_embeddings: true; set it to false to "
      "read the head of the file, or take {} out of the file to use the embedding",
      weights.file_of(kHead), kHead, embedding.name, kHead);
}

// Tokens that begin and end a document and fill a row, of the kinds of tokenizer that are common.
HfTokens special_tokens(const Tokenizer& tokenizer) {
  HfTokens tokens;
  tokens.eos = tokenizer.end_of_document();
  tokens.bos = tokens.eos;
  for (const char* name : {"<s>", "<bos>", "<|begin_of_text|>"})
    if (const auto id = tokenizer.token_id(name)) tokens.bos = id;
  for (const char* name : {"<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"})
    if (const auto id = tokenizer.token_id(name)) tokens.pad = id;
  return tokens;
}

// tokenizer.json and what transformers wants beside it.
std::vector<FolderText> tokenizer_files(const Tokenizer& tokenizer, const HfTokens& tokens, int64_t longest) {
  nlohmann::ordered_json names = nlohmann::ordered_json::object();
  const auto add = [&](const char* key, const std::optional<int32_t>& id) {
    if (id) names[key] = std::string(tokenizer.token_bytes(*id));
  };
  add("bos_token", tokens.bos);
  add("eos_token", tokens.eos);
  add("pad_token", tokens.pad);
  nlohmann::ordered_json config = names;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["model_max_length"] = longest;
  config["clean_up_tokenization_spaces"] = false;
  return {{kTokenizerFile, tokenizer.to_json()},
          {"tokenizer_config.json", config.dump(2) + "\n"},
          {"special_tokens_map.json", names.dump(2) + "\n"}};
}

using Parameters = std::map<std::string, std::vector<float>>;

// Room for every parameter, and the tensors of a checkpoint that are views of it.
std::vector<CheckpointTensor> views_of(const std::vector<HfTensor>& tensors, Parameters& parameters) {
  std::vector<CheckpointTensor> views;
  for (const HfTensor& tensor : tensors) {
    for (const HfPart& part : tensor.parts) {
      std::vector<float>& values = parameters[part.name];
      values.resize(static_cast<size_t>(part.shape.num_elements()));
      CheckpointTensor& view = views.emplace_back();
      view.name = part.name;
      view.global_shape = view.offset = view.extent = part.shape;
      for (int d = 0; d < part.shape.rank(); ++d) view.offset[d] = 0;
      view.data = Tensor(values.data(), DType::f32, part.shape);
    }
  }
  return views;
}

void check_finite(const std::string& checkpoint, const Parameters& parameters) {
  for (const auto& [name, values] : parameters) {
    const auto wrong =
        std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
    if (wrong != values.end())
      throw CheckpointError("{}: tensor {} is {} at element {}", checkpoint, name, *wrong,
                            wrong - values.begin());
  }
}

// The tokenizer of an import in the form of checkpoints; empty where there is none this program can run.
std::string usable_tokenizer(const std::string& folder, const ImportedModel& model) {
  if (model.tokenizer_json.empty()) return "";
  const std::string path = folder + "/" + kTokenizerFile;
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::from_json(model.tokenizer_json, path);
  } catch (const DataError& error) {
    log_warning("the tokenizer is left out, so that generate has none: {}", error.what());
    return "";
  }
  if (tokenizer->vocab_size() > model.config.vocab_size)
    throw CheckpointError("{}: has {} ids, more than vocab_size {} of config.json", path,
                          tokenizer->vocab_size(), model.config.vocab_size);
  return tokenizer->to_json();
}

}  // namespace

ImportedModel read_hugging_face(FileSystem& files, const std::string& folder) {
  ImportedModel model;
  const std::string config = folder + "/config.json";
  try {
    model.config = model_config_from_hugging_face(read_text(files, config, kMaxConfigBytes));
  } catch (const CheckpointError& error) {
    const std::string text = error.what();
    throw CheckpointError("{}", text.starts_with("config.json") ? folder + "/" + text : text);
  }
  const WeightFolder weights(files, folder, is_computed);
  const std::vector<HfTensor> tensors = tensors_in(weights, model.config);
  std::vector<NamedShape> expected;
  for (const HfTensor& tensor : tensors) expected.push_back({tensor.name, tensor.shape});
  const bool has_head = weights.has(kHead), tied = model.config.tie_embeddings;
  if (!tied && !has_head)
    throw CheckpointError(
        "{}: tensor {} is missing; where the head is the embedding, config.json must say "
        "tie_word_embeddings: true",
        folder, kHead);
  if (tied && has_head) expected.push_back({kHead, tensors.front().shape});
  weights.check(expected);
  if (tied && has_head) check_tied_head(weights, tensors.front());
  for (const HfTensor& tensor : tensors) {
    std::vector<float> values = weights.read(tensor.name);
    if (tensor.parts.size() == 1) {
      model.parameters[tensor.parts.front().name] = std::move(values);
      continue;
    }
    auto begin = values.begin();
    for (const HfPart& part : tensor.parts) {
      model.parameters[part.name].assign(begin, begin + part.shape.num_elements());
      begin += part.shape.num_elements();
    }
  }
  if (files.exists(folder + "/" + kTokenizerFile))
    model.tokenizer_json = read_text(files, folder + "/" + kTokenizerFile, kMaxTokenizerBytes);
  return model;
}

void export_hugging_face(FileSystem& files, const std::string& checkpoint, const std::string& output,
                         DType dtype) {
  if (files.exists(output)) throw UsageError("{}: exists already; give the name of a new folder", output);
  const auto comm = single_rank();
  const LoadedCheckpoint manifest = read_manifest(files, checkpoint);
  const ModelConfig config = model_config_from_text(manifest.text.model_config);
  if (const std::vector<std::string> found = problems(config); !found.empty())
    throw CheckpointError("{}: {}", checkpoint, fmt::join(found, "; "));
  const std::vector<HfTensor> tensors = hugging_face_tensors(config);
  Parameters parameters;
  load_checkpoint(*comm, files, checkpoint, views_of(tensors, parameters));
  check_finite(checkpoint, parameters);

  HfTokens tokens;
  std::vector<FolderText> texts;
  if (!manifest.text.tokenizer_json.empty()) {
    const Tokenizer tokenizer =
        Tokenizer::from_json(manifest.text.tokenizer_json, checkpoint + "/run/" + kTokenizerFile);
    tokens = special_tokens(tokenizer);
    texts = tokenizer_files(tokenizer, tokens, config.max_position_embeddings);
  }
  texts.push_back({"config.json", model_config_to_hugging_face(config, tokens, dtype)});
  texts.push_back({"generation_config.json", generation_config_to_hugging_face(tokens)});
  if (hugging_face_format(config) == HfFormat::transxssm) {
    for (const PythonFile& file : python_files())
      texts.push_back({std::string(file.name), std::string(file.text)});
  }
  std::vector<WeightSource> sources;
  for (const HfTensor& tensor : tensors) {
    sources.push_back({tensor.name, tensor.shape, [&parameters, &tensor] {
                         std::vector<float> values = std::move(parameters[tensor.parts.front().name]);
                         for (size_t i = 1; i < tensor.parts.size(); ++i) {
                           const std::vector<float>& part = parameters[tensor.parts[i].name];
                           values.insert(values.end(), part.begin(), part.end());
                         }
                         return values;
                       }});
  }
  write_weight_folder(files, output, texts, sources, dtype);
}

std::string import_hugging_face(FileSystem& files, const std::string& folder, const std::string& run) {
  if (files.exists(run) && (!files.is_directory(run) || !files.list(run).empty()))
    throw UsageError("{}: is not empty; give the name of a new run directory", run);
  ImportedModel model = read_hugging_face(files, folder);
  CheckpointText text;
  text.model_config = to_text(model.config);
  text.config_textproto = fmt::format("model {{\n{}}}\n", text.model_config);
  text.tokenizer_json = usable_tokenizer(folder, model);
  text.build = short_version();
  TrainState state;
  state.tokenizer_digest = fmt::format("{:08x}", crc32c(text.tokenizer_json));
  state.run_uuid = make_uuid();

  std::vector<CheckpointTensor> tensors = views_of(hugging_face_tensors(model.config), model.parameters);
  // The moments of every parameter are views of the same zeros.
  size_t largest = 0;
  for (const auto& [name, values] : model.parameters) largest = std::max(largest, values.size());
  std::vector<float> zeros(largest);
  const size_t count = tensors.size();
  for (const TensorKind kind : {TensorKind::exp_avg, TensorKind::exp_avg_sq}) {
    for (size_t i = 0; i < count; ++i) {
      CheckpointTensor moment = tensors[i];
      moment.kind = kind;
      moment.data = Tensor(zeros.data(), DType::f32, moment.global_shape);
      tensors.push_back(std::move(moment));
    }
  }
  const auto comm = single_rank();
  try {
    create_directories(files, run);
    const std::string path = save_checkpoint(*comm, files, run + "/checkpoints", state, text, tensors);
    write_file_atomically(files, run + "/config.textproto", text.config_textproto);
    return path;
  } catch (const std::system_error& error) {
    throw CheckpointSaveError("{}: cannot be written: {}", run, error.what());
  }
}

}  // namespace transxssm
