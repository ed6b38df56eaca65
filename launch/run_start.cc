#include "launch/run_start.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <system_error>

#include "launch/checkpoint_path.h"
#include "launch/plan.h"
#include "launch/version.h"
#include "runtime/crc32c.h"
#include "runtime/metrics.h"

namespace transxssm {
namespace {

// A run that starts below steps that are already there would leave two histories in one directory, and
// --resume auto would take up the other one.
void refuse_later_checkpoints(FileSystem& files, const std::string& checkpoints, const std::string& resume,
                              int64_t start) {
  for (const CheckpointInfo& info : list_checkpoints(files, checkpoints))
    if (info.valid && info.step > start)
      throw UsageError(
          "{} is newer than step {}, where --resume {} starts: give another log.run_directory, or move "
          "the later checkpoints away",
          info.path, start, resume);
}

// True also where there are no metrics to tell.
bool has_validation(FileSystem& files, const std::string& run_directory, int64_t step, bool last) {
  const std::string path = run_directory + "/metrics.jsonl";
  if (!files.exists(path)) return true;
  try {
    const MetricsHistory history = read_metrics(path);
    const MetricsHistory::Series* losses = history.find(last ? "eval/final_loss" : "eval/loss");
    return losses != nullptr &&
           std::find(losses->step.begin(), losses->step.end(), step) != losses->step.end();
  } catch (const DataError&) {
    return true;
  }
}

// However the two are spelled.
bool lies_in(const std::string& checkpoint, const std::string& checkpoints) {
  std::error_code none;
  return std::filesystem::equivalent(std::filesystem::path(checkpoint).parent_path(), checkpoints, none);
}

std::optional<Tokenizer> open_tokenizer(const TrainConfig& config) {
  require_files(config);
  const std::string& file = config.data().tokenizer();
  if (file.empty()) return std::nullopt;
  Tokenizer tokenizer = Tokenizer::load(file);
  if (tokenizer.vocab_size() > config.model().vocab_size())
    throw UsageError("data.tokenizer {} has {} tokens, but model.vocab_size is {}: set it to at least that",
                     file, tokenizer.vocab_size(), config.model().vocab_size());
  return tokenizer;
}

}  // namespace

RunInputs::RunInputs(const TrainConfig& config, Communicator& world)
    : tokenizer(open_tokenizer(config)),
      files(config, world, tokenizer ? &*tokenizer : nullptr),
      data(open_training_data(config, files)),
      validation(config, files, tokenizer ? &*tokenizer : nullptr) {}

RunStart find_start(const TrainConfig& config, const RunInputs& inputs, Communicator& world,
                    FileSystem& files, const std::string& checkpoints, const std::string& resume) {
  RunStart start;
  TrainConfig kept = config;
  kept.mutable_schedule()->set_rebase(false);  // said once, for this start
  start.text = {.model_config = to_text(model_config(config)),
                .config_textproto = to_text(kept),
                .tokenizer_json = inputs.tokenizer ? inputs.tokenizer->to_json() : "",
                .build = short_version()};
  TrainState& state = start.state;
  state.seed = config.seed();
  state.run_uuid = make_uuid();
  state.data_digest = fmt::format("{:016x}", inputs.data.digest());
  state.tokenizer_digest = fmt::format("{:08x}", crc32c(start.text.tokenizer_json));
  const MeshShape mesh = mesh_shape(config);
  state.mesh = {.dp = mesh.dp, .tp = mesh.tp, .pp = mesh.pp, .cp = mesh.cp};

  const Fallback fallback =
      config.checkpoint().fallback() == "previous" ? Fallback::previous : Fallback::stop;
  std::optional<std::string> path;
  if (resume == "auto")
    path = newest_checkpoint(world, files, checkpoints, fallback);
  else if (resume != "none")
    path = named_checkpoint(world, files, resume, checkpoints_of_run, fallback);
  if (path) start.checkpoint = read_manifest(world, files, *path);
  const auto refuse = [&] {
    refuse_later_checkpoints(files, checkpoints, resume, path ? start.checkpoint->state.step : 0);
  };
  if (resume != "auto") world.work("files", world.rank() == 0 ? refuse : std::function<void()>());
  if (path) {
    const LoadedCheckpoint& saved = *start.checkpoint;
    start.plan = plan_resume(config, state, saved);
    state.step = saved.state.step;
    state.updates = saved.state.updates;
    state.consumed_samples = saved.state.consumed_samples;
    state.consumed_tokens = saved.state.consumed_tokens;
    state.run_uuid = saved.state.run_uuid;
    state.loss = saved.state.loss;
    // On a curve of its own the run is compared with that from here on, should it stop before a step.
    state.learning_rate = config.schedule().rebase() ? start.plan.learning_rate.at(state.consumed_tokens)
                                                     : saved.state.learning_rate;
    if (config.data().tokenizer().empty()) {  // the weights belong to it all the same
      start.text.tokenizer_json = saved.text.tokenizer_json;
      state.tokenizer_digest = saved.state.tokenizer_digest;
    }
    std::array<double, 2> found{};  // rank 0 looks for all: own, evaluated
    const bool last = state.step >= start.plan.last_step;
    const auto look = [&] {
      found[0] = lies_in(*path, checkpoints);
      found[1] = found[0] != 0 && has_validation(files, config.log().run_directory(), state.step, last);
    };
    world.work("files", world.rank() == 0 ? look : std::function<void()>());
    world.broadcast(Tensor(found.data(), DType::f64, {2}), 0);
    start.own = found[0] != 0;
    start.evaluated = found[1] != 0;
  } else {
    start.plan = plan_start(config);
  }
  state.schedule = to_saved(start.plan.learning_rate);
  return start;
}

}  // namespace transxssm
