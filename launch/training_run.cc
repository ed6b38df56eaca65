#include "launch/training_run.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <system_error>

#include "checkpoint/checkpoint.h"
#include "launch/checkpoint_path.h"
#include "launch/plan.h"
#include "launch/progress.h"
#include "launch/trace_file.h"
#include "launch/trainer.h"
#include "launch/run_start.h"
#include "launch/version.h"
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
        stream_(stream),
        options_(options),
        files_(posix_file_system()),
        run_directory_(config.log().run_directory()),
        checkpoints_(checkpoints_directory(config)),
        inputs_(config, world),
        seen_(names_of_checkpoints()),
        start_(find_start(config, inputs_, world, files_, checkpoints_, options.resume)),
        state_(start_.state) {}

  int run() {
    if (nothing_is_left()) return static_cast<int>(ExitCode::ok);
    options_.before_writing();
    prepare_directory();
    trainer_.emplace(config_, world_, stream_);
    trainer_->set_learning_rate(start_.plan.learning_rate);
    if (start_.checkpoint) load(*start_.checkpoint);
    on_rank_zero([&] {
      write_file_atomically(files_, run_directory_ + "/config.textproto", start_.text.config_textproto);
      metrics_.emplace(run_directory_, state_.step + 1, facts());
    });
    if (world_.rank() == 0)
      warn_of_unused_sources(config_, inputs_.data,
                             start_.plan.last_step * config_.parallel().global_batch());
    tokens_at_start_ = state_.consumed_tokens;
    last_log_ = begin_ = Clock::now();
    // A start that was stopped right after its save had no time for this.
    if (start_.own && !start_.evaluated) {
      const AgreedSignal signal = validate_if_due();
      if (!goes_on_after(signal)) return leave(signal);
    }
    if (!is_last()) {  // a signal while the job started
      const AgreedSignal signal = options_.signal(world_, state_.step);
      if (signal.request == StopRequest::save_and_exit) return stop_early(signal);
    }
    while (!is_last()) {
      step();
      const AgreedSignal signal = options_.signal(world_, state_.step);
      if (signal.request == StopRequest::save_and_exit && !is_last()) return stop_early(signal);
      if (due(config_.checkpoint().every_steps()) ||
          (signal.request == StopRequest::save_and_go_on && !is_last()))
        save(false);
      const AgreedSignal later = validate_if_due();
      if (!goes_on_after(later)) return leave(later);
    }
    save(true);
    // The run is saved: a request to save and go on asks for nothing more.
    if (const AgreedSignal signal = validate(true); !goes_on_after(signal)) return leave(signal);
    on_rank_zero([&] { report(); });
    if (world_.rank() == 0) {
      log_info("done: {} steps, {} tokens; checkpoint {}, report {}/report.html", state_.step,
               format_count(state_.consumed_tokens), last_saved_, run_directory_);
    }
    return static_cast<int>(ExitCode::ok);
  }

 private:
  bool is_last() const { return state_.step >= start_.plan.last_step; }
  bool due(int64_t every) const {
    return every > 0 && state_.step > 0 && state_.step % every == 0 && !is_last();
  }
  // The strongest request of a rank meanwhile.
  AgreedSignal validate_if_due() {
    return due(config_.log().validation_every_steps()) ? validate(false) : AgreedSignal{};
  }
  bool goes_on_after(const AgreedSignal& signal) {
    if (signal.request == StopRequest::save_and_go_on) save(false);
    return signal.request != StopRequest::save_and_exit;
  }

  // A run that is done, and started again, is left as it is.
  bool nothing_is_left() const {
    if (!start_.own || !is_last() || !(start_.evaluated || inputs_.validation.empty())) return false;
    if (world_.rank() == 0)
      log_info(
          "done already: {} steps, {} tokens; checkpoint {}. More of schedule.steps or schedule.tokens goes "
          "on.",
          state_.step, format_count(state_.consumed_tokens), start_.checkpoint->path);
    return true;
  }

  // For files: the others wait, for as long as rank 0 takes.
  void on_rank_zero(const std::function<void()>& fn) const {
    world_.work("files", world_.rank() == 0 ? fn : nullptr);
  }

  // Everything that can be wrong with the run directory is found before step 1.
  void prepare_directory() {
    on_rank_zero([&] {
      try {
        create_directories(files_, checkpoints_);
        if (names_of_checkpoints() != seen_)
          throw UsageError("another job has just saved in {}: start again", checkpoints_);
        remove_leftovers(files_, checkpoints_);
      } catch (const std::system_error& error) {
        throw CheckpointSaveError("checkpoints cannot be kept in {}: {}", checkpoints_, error.what());
      }
    });
    check_writable(world_, files_, checkpoints_, 2 * make_plan(config_).checkpoint_bytes);
  }

  // To see whether a job that held the run's lock until now has changed what this start was planned from.
  std::vector<std::string> names_of_checkpoints() const {
    if (world_.rank() != 0 || !files_.is_directory(checkpoints_)) return {};
    std::vector<std::string> names = files_.list(checkpoints_);
    std::erase_if(names, [](const std::string& name) { return !name.starts_with("step-"); });
    std::sort(names.begin(), names.end());
    return names;
  }

  void load(const LoadedCheckpoint& checkpoint) {
    load_checkpoint(world_, files_, checkpoint.path, trainer_->checkpoint_tensors());
    trainer_->weights_were_loaded();
    trainer_->set_consumed(start_.plan.consumed);
    resumed_from_ = checkpoint.path;
    if (start_.own && !config_.schedule().rebase()) {  // what this run would save at this step is there
      last_saved_ = checkpoint.path;
      last_saved_step_ = state_.step;
    }
    const SavedMesh& saved = checkpoint.state.mesh;
    log_info("resuming from {}: step {}, {} tokens{}", checkpoint.path, state_.step,
             format_count(state_.consumed_tokens),
             saved == state_.mesh
                 ? ""
                 : fmt::format("; saved on pp {} x dp {} x cp {} x tp {}, now {}", saved.pp, saved.dp,
                               saved.cp, saved.tp, trainer_->mesh().shape().to_string()));
    const std::vector<std::string>& differences = start_.plan.differences;
    if (world_.rank() == 0 && !differences.empty())
      log_warning("this start is not as {} was saved:\n  {}", checkpoint.path,
                  fmt::join(differences, "\n  "));
  }

  void step() {
    const Clock::time_point begin = Clock::now();
    publish_progress(state_.step + 1, "train");
    take_activity_seconds();  // what lay between the steps
    std::optional<Trace> trace;
    if (options_.trace && ++steps_of_this_start_ == kTracedStep) trace.emplace();
    {
      const Span span(Activity::data, "data");
      const int64_t first = state_.consumed_samples + trainer_->first_row();
      inputs_.data.fill(first, trainer_->batch());
      // While this step computes, the rows of the next come from storage.
      inputs_.data.prefetch(first + config_.parallel().global_batch(), trainer_->batch().rows());
    }
    const StepResult result = trainer_->step();
    const ActivitySeconds activities = take_activity_seconds();
    if (trace) {
      keep_trace(trace->take());
    }

    state_.step = trainer_->consumed().steps;
    state_.updates = trainer_->consumed().updates;
    state_.consumed_samples = trainer_->consumed().rows;
    state_.consumed_tokens = trainer_->consumed().tokens;
    state_.loss = result.loss;
    state_.learning_rate = result.learning_rate;
    if (world_.rank() != 0) return;
    StepMetrics m{.step = state_.step,
                  .num_steps = start_.plan.last_step,
                  .loss = result.loss,
                  .grad_norm = result.gradient_norm,
                  .learning_rate = result.learning_rate,
                  .step_seconds = seconds_since(begin),
                  .tokens = state_.consumed_tokens};
    m.tokens_per_second = static_cast<double>(tokens_per_step(config_)) / m.step_seconds;
    const double rate =
        static_cast<double>(state_.consumed_tokens - tokens_at_start_) / seconds_since(begin_);
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

  // A trace that cannot be written is not worth the run.
  void keep_trace(const std::vector<TraceEvent>& events) const {
    try {
      write_trace(options_.trace_file, events, world_, options_.host);
    } catch (const OutputError& error) {
      return log_warning("{} Training goes on without the trace.", error.what());
    }
    if (world_.rank() == 0) log_info("the trace of step {} is written", trainer_->consumed().steps);
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

  AgreedSignal validate(bool final, bool hear = true) {
    const AgreedSignal signal =
        inputs_.validation.run(*trainer_, final, metrics_ ? &*metrics_ : nullptr,
                               [&] { return hear ? options_.signal(world_, state_.step) : AgreedSignal{}; });
    last_log_ = Clock::now();
    steps_since_log_ = 0;
    return signal;
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
    publish_progress(state_.step, "save");
    const Clock::time_point begin = Clock::now();
    const Retention retention{.keep_last = static_cast<int>(config_.checkpoint().keep_last()),
                              .keep_every = config_.checkpoint().keep_every(),
                              .resumed_from = resumed_from_};
    try {
      last_saved_ = save_checkpoint(world_, files_, checkpoints_, state_, start_.text,
                                    trainer_->checkpoint_tensors(), retention);
      last_saved_step_ = state_.step;
      failed_saves_ = 0;
      log_info("saved {} in {:.2f} s", last_saved_, seconds_since(begin));
    } catch (const CheckpointSaveError& error) {
      if (required || ++failed_saves_ >= config_.checkpoint().max_failed_saves()) throw;
      log_warning("{} Training goes on; {} of at most {} saves in a row failed.", error.what(), failed_saves_,
                  config_.checkpoint().max_failed_saves());
    }
    on_rank_zero([&] { report(); });
    last_log_ = Clock::now();
    steps_since_log_ = 0;
  }

  int stop_early(const AgreedSignal& signal) {
    const int code = leave(signal);
    if (due(config_.log().validation_every_steps())) validate(false, false);
    return code;
  }

  int leave(const AgreedSignal& signal) {
    log_info("{} on rank {}: saving step {}", signal_name(signal.signal), signal.rank, state_.step);
    save(true);
    if (options_.stop_file != nullptr) {
      try {
        options_.stop_file->publish_text(fmt::format("step {}\n", state_.step));
      } catch (const OutputError& error) {
        log_warning("{} What waits for --stop-file does not learn of the save.", error.what());
      }
    }
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
        {"training tokens", format_count(inputs_.data.num_tokens())},
        {"seed", std::to_string(config_.seed())},
        {"version", short_version()}};
  }

  const TrainConfig& config_;
  Communicator& world_;
  Stream& stream_;
  const TrainingRunOptions& options_;
  FileSystem& files_;
  std::string run_directory_, checkpoints_;
  RunInputs inputs_;
  const std::vector<std::string> seen_;
  const RunStart start_;
  TrainState state_;
  std::optional<Trainer> trainer_;
  std::optional<MetricsWriter> metrics_;  // rank 0
  std::string resumed_from_, last_saved_;
  int64_t last_saved_step_ = -1;
  int64_t failed_saves_ = 0;
  int64_t tokens_at_start_ = 0;
  int64_t steps_since_log_ = 0;
  int64_t steps_of_this_start_ = 0;
  Clock::time_point begin_, last_log_;
};

}  // namespace

int run_training(const TrainConfig& config, Communicator& world, Stream& stream,
                 const TrainingRunOptions& options) {
  return TrainingRun(config, world, stream, options).run();
}

}  // namespace transxssm
