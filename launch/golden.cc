#include "launch/golden.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <type_traits>

#include "checkpoint/tensor_file.h"
#include "launch/host_copy.h"
#include "launch/plan.h"
#include "runtime/json.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxErrorFileBytes = 1 << 24;

// Reads and checks golden.safetensors against the model.
class GoldenReader {
 public:
  GoldenReader(FileSystem& files, const std::string& path, GoldenFolder& golden)
      : path_(path), file_(files, path), golden_(golden) {}

  void read() {
    read_inputs();
    const ModelConfig& model = golden_.model.config;
    const std::string prefix = golden_.trajectory ? "final." : "grad.";
    expect("loss", {golden_.steps});
    if (golden_.trajectory) {
      expect("grad_norm", {golden_.steps});
    } else {
      for (int64_t i = 0; i < model.num_layers; ++i)
        if (const std::string name = "hidden." + std::to_string(i); file_.has(name))
          expect(name, {golden_.rows, golden_.tokens, model.d_model});
      expect("logits", {golden_.rows, golden_.tokens, model.vocab_size});
    }
    for (const HfTensor& parameter : golden_.parameters) expect(prefix + parameter.name, parameter.shape);
    for (const SafetensorsEntry& entry : file_.entries())
      if (!known_.contains(entry.key))
        throw CheckpointError("{}: tensor {} is not expected of this model", path_, entry.key);
  }

 private:
  void expect(const std::string& name, const Shape& shape) {
    known_.insert(name);
    golden_.expected[name] = file_.reals(name, shape);
  }

  void read_inputs() {
    golden_.trajectory = file_.has("lr");
    const Shape& shape = file_.shape("input_ids");
    const int rank = golden_.trajectory ? 3 : 2;
    if (shape.rank() != rank || shape.num_elements() == 0 || shape[rank - 1] < 2)
      throw CheckpointError("{}: tensor input_ids has shape {} instead of {} with at least two tokens", path_,
                            shape.to_string(), golden_.trajectory ? "[S, B, T]" : "[B, T]");
    golden_.steps = golden_.trajectory ? shape[0] : 1;
    golden_.rows = shape[rank - 2];
    golden_.tokens = shape[rank - 1];
    golden_.input_ids = file_.integers("input_ids", shape);
    known_.insert("input_ids");
    for (int64_t id : golden_.input_ids)
      if (id < 0 || id >= golden_.model.config.vocab_size)
        throw CheckpointError("{}: tensor input_ids has an id {}; the vocabulary has {}", path_, id,
                              golden_.model.config.vocab_size);
    if (file_.has("document_ids")) {
      golden_.document_ids = file_.integers("document_ids", shape);
      known_.insert("document_ids");
    }
    if (!golden_.trajectory) return;
    known_.insert("lr");
    golden_.learning_rate = file_.reals("lr", {golden_.steps});
  }

  const std::string& path_;
  TensorFile file_;
  GoldenFolder& golden_;
  std::set<std::string> known_;
};

std::optional<GoldenFolder::RoundingError> read_bf16_error(FileSystem& files, const std::string& path) {
  if (!files.exists(path)) return std::nullopt;
  const JsonLimits limits{.max_bytes = kMaxErrorFileBytes};
  const auto json = parse_json<CheckpointError>(read_file(files, path, kMaxErrorFileBytes), path, limits);
  const auto number = [&](const char* field) {
    if (!json.is_object() || !json.contains(field) || !json[field].is_number() ||
        !(json[field].get<double>() > 0))
      throw CheckpointError("{}: field {} is not a positive number", path, field);
    return json[field].get<double>();
  };
  return GoldenFolder::RoundingError{number("logits"), number("loss"), number("grad_all")};
}

void load_weights(const ImportedModel& model, const Network& network, Stream& stream) {
  for (const Parameter& p : network.parameters().all()) {
    const std::vector<float>& values = model.parameters.at(p.spec.name);
    Tensor box(const_cast<float*>(values.data()), DType::f32, p.spec.global_shape);
    for (int dim = 0; dim < box.rank(); ++dim)
      box = box.slice(dim, p.spec.box.offset[dim], p.spec.box.extent[dim]);
    if (p.num_elements() > 0) from_host(stream, box, p.weight);
  }
}

void fill_batch(const GoldenFolder& golden, int64_t step, int64_t first_row, const Batch& batch) {
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const int64_t begin = (step * golden.rows + first_row + i) * golden.tokens;
    const auto id = [&](int64_t t) { return golden.input_ids[static_cast<size_t>(begin + t)]; };
    const auto same_document = [&](int64_t t) {  // as the token before
      return golden.document_ids.empty() || golden.document_ids[static_cast<size_t>(begin + t)] ==
                                                golden.document_ids[static_cast<size_t>(begin + t - 1)];
    };
    int32_t position = 0, document = 0;
    for (int64_t t = 0; t < golden.tokens; ++t, ++position) {
      if (t > 0 && !same_document(t)) position = 0, ++document;
      const bool valid = t + 1 < golden.tokens && same_document(t + 1);
      batch.input.at<int32_t>({i, t}) = static_cast<int32_t>(id(t));
      batch.target.at<int32_t>({i, t}) = valid ? static_cast<int32_t>(id(t + 1)) : 0;
      batch.position.at<int32_t>({i, t}) = position;
      batch.document.at<int32_t>({i, t}) = document;
      batch.valid.at<uint8_t>({i, t}) = valid;
    }
  }
}

// Our parameters joined into the tensors of the Hugging Face form.
void append_parameters(const GoldenFolder& golden, const std::string& prefix,
                       std::vector<LogicalTensor> logical, std::vector<LogicalTensor>& tensors) {
  std::map<std::string, std::vector<float>> parts;
  for (LogicalTensor& tensor : logical) parts[tensor.name] = std::move(tensor.values);
  for (const HfTensor& parameter : golden.parameters) {
    LogicalTensor whole{prefix + parameter.name, parameter.shape, {}};
    for (const HfPart& part : parameter.parts) {
      const std::vector<float>& values = parts.at(part.name);
      whole.values.insert(whole.values.end(), values.begin(), values.end());
    }
    tensors.push_back(std::move(whole));
  }
}

}  // namespace

GoldenFolder read_golden(FileSystem& files, const std::string& folder) {
  GoldenFolder golden;
  golden.path = folder;
  golden.model = read_hugging_face(files, folder);
  golden.parameters = hugging_face_tensors(golden.model.config);
  GoldenReader(files, folder + "/golden.safetensors", golden).read();
  golden.bf16_error = read_bf16_error(files, folder + "/bf16_error.json");
  return golden;
}

TrainConfig golden_config(const GoldenFolder& golden, const std::vector<std::string>& overrides, int world) {
  for (const std::string& assignment : overrides)
    if (!assignment.starts_with("parallel.") && !assignment.starts_with("precision."))
      throw UsageError(
          "--set {}: with --golden only sections parallel and precision can be set; the folder says the rest",
          assignment);
  const TrainConfig config = parse_config(
      fmt::format("model {{ {} }} data {{ train {{ prefix: 'none' }} sequence_length: {} }} "
                  "optimizer {{ beta1: 0.9 beta2: 0.999 eps: 1e-8 weight_decay: 0.01 clip_norm: 1 }} "
                  "schedule {{ steps: {} }} parallel {{ global_batch: {} }} log {{ run_directory: 'none' }}",
                  to_text(golden.model.config), golden.tokens, golden.steps, golden.rows),
      golden.path, overrides, world);
  if (config.parallel().global_batch() != golden.rows)
    throw UsageError("--set parallel.global_batch: the folder has {} rows", golden.rows);
  return config;
}

GoldenResult compute_golden(const GoldenFolder& golden, const TrainConfig& config, Communicator& world,
                            Stream& stream) {
  Trainer trainer(config, world, stream);
  load_weights(golden.model, trainer.network(), stream);
  trainer.network().parameters().refresh_operands(stream);
  std::optional<LayerRecorder> recorder;
  if (!golden.trajectory) recorder.emplace(trainer, stream, golden.rows, golden.tokens, true);
  GoldenResult result;
  for (int64_t step = 0; step < golden.steps; ++step) {
    fill_batch(golden, step, trainer.first_row(), trainer.batch());
    const double rate = golden.trajectory ? golden.learning_rate[static_cast<size_t>(step)] : 0;
    trainer.set_learning_rate({.kind = LearningRateKind::constant, .peak = rate});
    StepResult r;
    try {
      r = trainer.step();
    } catch (const NumericsError&) {  // on every rank; what came before it tells where it began
      r.loss = r.gradient_norm = std::numeric_limits<double>::quiet_NaN();
    }
    result.loss.push_back(r.loss);
    result.gradient_norm.push_back(r.gradient_norm);
  }
  if (golden.trajectory) {
    append_parameters(golden, "final.", gather_parameters(trainer, &Parameter::weight), result.tensors);
  } else {
    result.tensors = recorder->gather();
    append_parameters(golden, "grad.", gather_parameters(trainer, &Parameter::gradient), result.tensors);
  }
  return result;
}

void write_golden(FileSystem& files, const std::string& path, const GoldenFolder& golden,
                  const GoldenResult& result) {
  const Shape ids =
      golden.trajectory ? Shape{golden.steps, golden.rows, golden.tokens} : Shape{golden.rows, golden.tokens};
  std::vector<NamedTensor> tensors;
  const auto add = [&](const std::string& name, const auto& values, const Shape& shape) {
    using Element = typename std::remove_cvref_t<decltype(values)>::value_type;
    if (!values.empty())
      tensors.push_back({name, Tensor(const_cast<Element*>(values.data()), DTypeOf<Element>::value, shape)});
  };
  add("input_ids", golden.input_ids, ids);
  add("document_ids", golden.document_ids, ids);
  add("lr", golden.learning_rate, {golden.steps});
  add("loss", result.loss, {golden.steps});
  if (golden.trajectory) add("grad_norm", result.gradient_norm, {golden.steps});
  for (const LogicalTensor& tensor : result.tensors) add(tensor.name, tensor.values, tensor.shape);
  write_tensor_file(files, path, tensors);
}

}  // namespace transxssm
