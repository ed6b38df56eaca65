#include "launch/training_run.h"

#include <chrono>
#include <optional>
#include <system_error>

#include "checkpoint/checkpoint.h"
#include "launch/plan.h"
#include "launch/progress.h"
#include "launch/trace_file.h"
#include "launch/trainer.h"
#include "launch/training_data.h"
#include "launch/validation.h"
#include "launch/version.h"
#include "runtime/crc32c.h"
#include "runtime/data/sampler.h"
#include "runtime/data/tokenizer.h"
#include "runtime/format.h"
#include "runtime/log.h"
#include "runtime/metrics.h"
#include "runtime/report.h"
#include "runtime/trace.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kTracedStep = 3;  // of this start: caches and plans are warm

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class TrainingRun {
 public:
  TrainingRun(const TrainConfig& config, Communicator& world, Stream& stream,
              const TrainingRunOptions& options)
      : config_(config),
        world_(world),
        options_(options),
        files_(posix_file_system()),
        run_directory_(config.log().run_directory()),
        checkpoints_(run_directory_ + "/" + config.checkpoint().directory()),
        data_(open_training_data(config)),
        trainer_(config, world, stream) {}

  int run() {
    prepare_directory();
    open_validation();
    resume();
    if (world_.rank() == 0)
      write_file_atomically(files_, run_directory_ + "/config.textproto", to_text(config_));
    if (world_.rank() == 0) metrics_.emplace(run_directory_, trainer_.steps_done() + 1, facts());
    tokens_at_start_ = state_.consumed_tokens;
    last_log_ = start_ = Clock::now();
    while (trainer_.steps_done() < config_.schedule().steps()) {
      step();
      const bool last = trainer_.steps_done() == config_.schedule().steps();
      const AgreedSignal signal = options_.signal(world_, trainer_.steps_done());
      if (signal.request == StopRequest::save_and_exit && !last) return stop_early(signal);
      if (due(config_.checkpoint().every_steps()) || (signal.request == StopRequest::save_and_go_on && !last))
        save(false);
      if (due(config_.log().validation_every_steps())) validate(config_.log().validation_rows());
    }
    save(true);
    validate(config_.log().final_validation_rows());
    if (world_.rank() == 0) {
      report();
      log_info("done: {} steps, {} tokens; checkpoint {}, report {}/report.html", trainer_.steps_done(),
               format_count(state_.consumed_tokens), last_saved_, run_directory_);
    }
    return static_cast<int>(ExitCode::ok);
  }

 private:
  bool due(int64_t every) const {
    return every > 0 && trainer_.steps_done() % every == 0 &&
           trainer_.steps_done() < config_.schedule().steps();
  }

  // Everything that can be wrong with the run directory is found before step 1.
  void prepare_directory() {
    if (world_.rank() == 0) {
      try {
        create_directories(files_, checkpoints_);
        remove_leftovers(files_, checkpoints_);
      } catch (const std::system_error& error) {
        throw CheckpointSaveError("checkpoints cannot be kept in {}: {}", checkpoints_, error.what());
      }
    }
    check_writable(world_, files_, checkpoints_, 2 * make_plan(config_).checkpoint_bytes);
  }

  void open_validation() {
    std::optional<Tokenizer> tokenizer;
    const std::string& file = config_.data().tokenizer();
    if (!file.empty()) {
      tokenizer.emplace(Tokenizer::load(file));
      if (tokenizer->vocab_size() > config_.model().vocab_size())
        throw UsageError(
            "data.tokenizer {} has {} tokens, but model.vocab_size is {}: set it to at least that", file,
            tokenizer->vocab_size(), config_.model().vocab_size());
      text_.tokenizer_json = tokenizer->to_json();
    }
    validation_.emplace(config_, tokenizer ? &*tokenizer : nullptr);
  }

  void resume() {
    text_.model_config = to_text(model_config(config_));
    text_.config_textproto = to_text(config_);
    text_.build = short_version();
    state_.seed = config_.seed();
    state_.run_uuid = make_uuid();
    state_.data_digest = fmt::format("{:016x}", data_.digest());
    state_.tokenizer_digest = fmt::format("{:08x}", crc32c(text_.tokenizer_json));
    const MeshShape& mesh = trainer_.mesh().shape();
    state_.mesh = {.dp = mesh.dp, .tp = mesh.tp, .pp = mesh.pp, .cp = mesh.cp};
    const Fallback fallback =
        config_.checkpoint().fallback() == "previous" ? Fallback::previous : Fallback::stop;
    const auto path = select_checkpoint(world_, files_, checkpoints_, options_.resume, fallback);
    refuse_later_checkpoints(path ? read_manifest(world_, files_, *path).state.step : 0);
    if (!path) return;
    compare_with(read_manifest(world_, files_, *path));
    const LoadedCheckpoint loaded = load_checkpoint(world_, files_, *path, trainer_.checkpoint_tensors());
    trainer_.weights_were_loaded();
    state_.step = loaded.state.step;
    state_.consumed_samples = loaded.state.consumed_samples;
    state_.consumed_tokens = loaded.state.consumed_tokens;
    state_.run_uuid = loaded.state.run_uuid;
    state_.loss = loaded.state.loss;
    state_.learning_rate = loaded.state.learning_rate;
    trainer_.set_steps_done(loaded.state.step);
    resumed_from_ = *path;
    if (path->starts_with(checkpoints_ + "/")) {  // what this run would save at this step is there
      last_saved_ = *path;
      last_saved_step_ = loaded.state.step;
    }
    const SavedMesh& saved = loaded.state.mesh;
    log_info("resuming from {}: step {}, {} tokens{}", *path, loaded.state.step,
             format_count(loaded.state.consumed_tokens),
             saved == state_.mesh ? ""
                                  : fmt::format("; saved on pp {} x dp {} x cp {} x tp {}, now {}", saved.pp,
                                                saved.dp, saved.cp, saved.tp, mesh.to_string()));
  }

  // A run that starts below steps that are already there would leave two histories in one directory, and
  // --resume auto would take up the other one.
  void refuse_later_checkpoints(int64_t start) const {
    if (options_.resume == "auto") return;
    for (const CheckpointInfo& info : list_checkpoints(files_, checkpoints_))
      if (info.valid && info.step > start)
        throw UsageError(
            "{} is newer than step {}, where --resume {} starts: give another log.run_directory, or move "
            "the later checkpoints away",
            info.path, start, options_.resume);
  }

  // What a resumed run must share with the checkpoint, and what a user should know when it does not.
  void compare_with(const LoadedCheckpoint& checkpoint) const {
    if (model_config_from_text(checkpoint.text.model_config) != model_config(config_))
      throw UsageError(
          "the model of {} is another one.\nThere:\n{}\nHere:\n{}\nChange the section model, or give "
          "another log.run_directory.",
          checkpoint.path, checkpoint.text.model_config, text_.model_config);
    if (checkpoint.state.tokenizer_digest != state_.tokenizer_digest)
      throw UsageError(
          "{} was trained with another tokenizer (digest {}, data.tokenizer {} has {}): give the one it "
          "was trained with.",
          checkpoint.path, checkpoint.state.tokenizer_digest, config_.data().tokenizer(),
          state_.tokenizer_digest);
    if (checkpoint.state.seed != state_.seed)
      log_warning("the seed was {} and is now {}: the order of the data changes", checkpoint.state.seed,
                  state_.seed);
    if (checkpoint.state.data_digest != state_.data_digest)
      log_warning(
          "the training data is not what {} was trained on: the run goes on at sample {} of the new data",
          checkpoint.path, checkpoint.state.consumed_samples);
  }

  void step() {
    const Clock::time_point begin = Clock::now();
    publish_progress(trainer_.steps_done() + 1, "train");
    take_activity_seconds();  // what lay between the steps
    std::optional<Trace> trace;
    if (!options_.trace.empty() && ++steps_of_this_start_ == kTracedStep) trace.emplace();
    {
      const Span span(Activity::data, "data");
      data_.fill(state_.consumed_samples + trainer_.first_row(), trainer_.batch());
    }
    const StepResult result = trainer_.step();
    const ActivitySeconds activities = take_activity_seconds();
    if (trace) {
      write_trace(options_.trace, trace->take(), world_, options_.host);
      if (world_.rank() == 0) log_info("trace of step {}: {}", trainer_.steps_done(), options_.trace);
    }

    state_.step = trainer_.steps_done();
    state_.consumed_samples += config_.parallel().global_batch();
    state_.consumed_tokens += tokens_per_step(config_);
    state_.loss = result.loss;
    state_.learning_rate = result.learning_rate;
    if (world_.rank() != 0) return;
    StepMetrics m{.step = state_.step,
                  .num_steps = config_.schedule().steps(),
                  .loss = result.loss,
                  .grad_norm = result.gradient_norm,
                  .learning_rate = result.learning_rate,
                  .step_seconds = seconds_since(begin),
                  .tokens = state_.consumed_tokens};
    m.tokens_per_second = static_cast<double>(tokens_per_step(config_)) / m.step_seconds;
    const double rate =
        static_cast<double>(state_.consumed_tokens - tokens_at_start_) / seconds_since(start_);
    m.eta_seconds = static_cast<double>((m.num_steps - m.step) * tokens_per_step(config_)) / rate;
    metrics_->write(m, shares(activities));
    ++steps_since_log_;
    if (m.step % config_.log().every_steps() != 0 && m.step != m.num_steps) return;
    // The line shows the mean speed since the line before it.
    m.step_seconds = seconds_since(last_log_) / static_cast<double>(steps_since_log_);
    m.tokens_per_second = static_cast<double>(tokens_per_step(config_)) / m.step_seconds;
    last_log_ = Clock::now();
    steps_since_log_ = 0;
    log_info("{}", format_step_line(m));
  }

  // What rank 0 did with a step, as fractions of it.
  static std::vector<Metric> shares(const ActivitySeconds& activities) {
    std::vector<Metric> metrics;
    for (int a = 0; a < kNumActivities; ++a) {
      const auto activity = static_cast<Activity>(a);
      metrics.push_back({fmt::format("time/{}", activity_name(activity)),
                         activities[activity] / std::max(1e-12, activities.total())});
    }
    return metrics;
  }

  void validate(int64_t rows) {
    if (!validation_) return;
    validation_->run(trainer_, rows, metrics_ ? &*metrics_ : nullptr);
    last_log_ = Clock::now();
    steps_since_log_ = 0;
  }

  // A picture of the run is never worth the run.
  void report() const {
    try {
      write_report(run_directory_);
    } catch (const Error& error) {
      log_warning("no report: {}", error.what());
    }
  }

  // A save that fails leaves the older checkpoints as they are and costs a warning, until too many failed in
  // a row.
  void save(bool required) {
    if (state_.step == last_saved_step_) return;
    publish_progress(trainer_.steps_done(), "save");
    const Clock::time_point begin = Clock::now();
    const Retention retention{.keep_last = static_cast<int>(config_.checkpoint().keep_last()),
                              .keep_every = config_.checkpoint().keep_every(),
                              .resumed_from = resumed_from_};
    try {
      last_saved_ = save_checkpoint(world_, files_, checkpoints_, state_, text_,
                                    trainer_.checkpoint_tensors(), retention);
      last_saved_step_ = state_.step;
      failed_saves_ = 0;
      log_info("saved {} in {:.2f} s", last_saved_, seconds_since(begin));
    } catch (const CheckpointSaveError& error) {
      if (required || ++failed_saves_ >= config_.checkpoint().max_failed_saves()) throw;
      log_warning("{} Training goes on; {} of at most {} saves in a row failed.", error.what(), failed_saves_,
                  config_.checkpoint().max_failed_saves());
    }
    if (world_.rank() == 0) report();
    last_log_ = Clock::now();
    steps_since_log_ = 0;
  }

  int stop_early(const AgreedSignal& signal) {
    log_info("{} on rank {}: saving step {}", signal_name(signal.signal), signal.rank, state_.step);
    save(true);
    if (world_.rank() == 0) log_info("saved; go on with: {}", options_.resume_command);
    return static_cast<int>(ExitCode::preempted);
  }

  RunFacts facts() const {
    const Plan plan = make_plan(config_);
    return {
        {"model", fmt::format("{} layers {}, d_model {}", config_.model().num_layers(),
                              layer_pattern(model_config(config_),
                                            {.num_layers = static_cast<int>(config_.model().num_layers())}),
                              config_.model().d_model())},
        {"parameters", format_count(plan.num_parameters)},
        {"mesh", plan.mesh.to_string()},
        {"tokens a step", format_count(tokens_per_step(config_))},
        {"training tokens", format_count(data_.num_tokens())},
        {"seed", std::to_string(config_.seed())},
        {"version", short_version()}};
  }

  const TrainConfig& config_;
  Communicator& world_;
  const TrainingRunOptions& options_;
  FileSystem& files_;
  std::string run_directory_, checkpoints_;
  TrainingData data_;
  Trainer trainer_;
  std::optional<MetricsWriter> metrics_;  // rank 0
  std::optional<Validation> validation_;
  TrainState state_;
  CheckpointText text_;
  std::string resumed_from_, last_saved_;
  int64_t last_saved_step_ = -1;
  int64_t failed_saves_ = 0;
  int64_t tokens_at_start_ = 0;
  int64_t steps_since_log_ = 0;
  int64_t steps_of_this_start_ = 0;
  Clock::time_point start_, last_log_;
};

}  // namespace

int run_training(const TrainConfig& config, Communicator& world, Stream& stream,
                 const TrainingRunOptions& options) {
  return TrainingRun(config, world, stream, options).run();
}

}  // namespace transxssm
