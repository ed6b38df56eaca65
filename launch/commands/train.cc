#include "launch/commands/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <system_error>

#include "checkpoint/run_lock.h"
#include "launch/checkpoint_path.h"
#include "launch/config.h"
#include "launch/device.h"
#include "launch/hosts.h"
#include "launch/option_output.h"
#include "launch/plan.h"
#include "launch/progress.h"
#include "launch/trace_file.h"
#include "launch/training_run.h"
#include "launch/worker.h"
#include "runtime/file_system.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

// Without ranks: what the job would do. parallel.dp that follows from the number of ranks counts as one.
int print_plan(const Arguments& arguments, int world_size) {
  std::vector<std::string> overrides = arguments.list("--set");
  TrainConfig config = load_config(arguments.text("--config"), overrides, world_size);
  if (config.parallel().dp() == 0) {
    overrides.push_back("parallel.dp=1");
    config = load_config(arguments.text("--config"), overrides, 0);
  }
  std::printf("%s\n", to_text(make_plan(config), config).c_str());
  return 0;
}

void make_directory(const char* field, const std::string& path) {
  try {
    create_directories(posix_file_system(), path);
  } catch (const std::system_error& error) {
    throw CheckpointSaveError("{} {} cannot be made: {}", field, path, error.what());
  }
}

// As a shell reads it back as one word.
std::string shell_word(const std::string& text) {
  const auto is_plain = [](unsigned char c) {
    return std::isalnum(c) != 0 || std::strchr("/._-+=:,@%", c) != nullptr;
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), is_plain)) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

// The locks of what this run alone may write to: its directory, and that of its checkpoints where it is
// another.
std::list<RunLock> lock_directories(const TrainConfig& config) {
  const std::string& run = config.log().run_directory();
  const std::string checkpoints = checkpoints_directory(config);
  std::list<RunLock> locks;
  make_directory("log.run_directory", run + "/log");
  locks.emplace_back(run);
  const std::filesystem::path inside =
      std::filesystem::path(config.checkpoint().directory()).lexically_normal();
  if (!inside.is_absolute() && (inside.empty() || *inside.begin() != "..")) return locks;
  make_directory("checkpoint.directory", checkpoints);
  if (!std::filesystem::equivalent(run, checkpoints)) locks.emplace_back(checkpoints);
  return locks;
}

// What a run reads, which no output may replace.
std::vector<std::string> inputs_of(const TrainConfig& config, const std::string& file) {
  std::vector<std::string> inputs = {file, config.data().tokenizer()};
  std::vector<std::string> prefixes = {config.data().validation()};
  for (const auto& source : config.data().train()) prefixes.push_back(source.prefix());
  for (const std::string& prefix : prefixes)
    for (const char* suffix : {".bin", ".idx", ".json"}) inputs.push_back(prefix + suffix);
  return inputs;
}

int train(const Arguments& arguments, Worker& worker) {
  if (arguments.flag("--dry-run")) {
    const int world_size = worker.size() > 1 ? worker.size() : 0;
    return worker.rank() == 0 ? print_plan(arguments, world_size) : 0;
  }
  TrainConfig config = load_config(arguments.text("--config"), arguments.list("--set"), worker.size());
  std::unique_ptr<OutputFiles> trace, stop_file;
  if (worker.rank() == 0) {
    const std::vector<std::string> inputs = inputs_of(config, arguments.text("--config"));
    const std::string stop = arguments.text("--stop-file");
    trace = open_trace(arguments.text("--trace"), arguments.flag("--overwrite"), inputs);
    stop_file = option_output(stop, begins_with(stop, "step "), inputs);
  }
  worker.world().set_timeout(std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(config.parallel().timeout_seconds())));
  const Device device = choose_device(config.parallel().device(), worker.local_rank());
  const std::string compute = settle_compute(config, device, worker.world());
  check_precision(config, device);
  const int threads =
      worker.take_threads(config.parallel().threads_per_rank(), config.parallel().pin_threads());
  Stream stream(device, threads);
  use_device_of(stream, worker, config.precision().deterministic());
  TrainingRunOptions options{.resume = arguments.text("--resume"),
                             .trace = arguments.has("--trace"),
                             .trace_file = trace.get(),
                             .host = worker.host(),
                             .stop_file = stop_file.get()};
  const std::string& run_directory = config.log().run_directory();
  options.resume_command = fmt::format("launch/run.sh -n {} -- train --config {} --resume auto",
                                       worker.size(), shell_word(run_directory + "/config.textproto"));
  std::list<RunLock> locks;
  options.before_writing = [&] {
    const auto prepare = [&] {
      locks = lock_directories(config);
      clear_progress(run_directory + "/log");
    };
    worker.world().work("start", worker.rank() == 0 ? prepare : std::function<void()>());
    open_log_file(fmt::format("{}/log/rank-{}.txt", run_directory, worker.rank()));
    open_progress(run_directory + "/log", worker.rank(), worker.size());
    log_info("{}\n{}\nthreads   {} a rank, {} ranks on {}", to_text(make_plan(config, device), config),
             compute, threads, worker.size(), describe_hosts(worker.hosts()));
    const std::string apart = tensor_groups_apart(worker.hosts(), static_cast<int>(mesh_shape(config).tp));
    if (worker.rank() == 0 && !apart.empty()) log_warning("{}", apart);
  };
  return run_training(config, worker.world(), stream, options);
}

}  // namespace

Command train_command() {
  return {
      .path = "train",
      .summary = "Pretrain a model, alone or as ranks under mpirun or srun",
      .example =
          "launch/run.sh -n 4 -- train --config launch/configs/tiny.textproto --set parallel.tp=2 "
          "--set parallel.pp=2",
      .options =
          {{.name = "--config", .value = "FILE", .help = "textproto, or JSON (.json)", .required = true},
           {.name = "--set",
            .value = "PATH=VALUE",
            .help = "override one field, such as parallel.tp=2; later ones win",
            .repeatable = true},
           {.name = "--resume",
            .value = "auto|none|DIR",
            .help =
                "auto: from the newest committed checkpoint of the run directory, if any; none: from step 0; "
                "else a checkpoint, a directory of them, or a run directory (one that is called auto: "
                "./auto)",
            .standard = "auto"},
           {.name = "--trace",
            .value = "FILE",
            .help = "write a Chrome/Perfetto trace of the third step: operations and waits of every rank"},
           {.name = "--overwrite", .help = "--trace may replace a file that is no trace"},
           {.name = "--stop-file",
            .value = "FILE",
            .help = "written after a save that a signal asked for, with the step: what a job script goes by, "
                    "whatever exit code the launcher makes of it"},
           {.name = "--dry-run", .help = "check the configuration, print the plan, train nothing"}},
      .run =
          [](const Arguments& arguments) {
            return run_worker([&](Worker& worker) { return train(arguments, worker); },
                              arguments.flag("--dry-run") ? SignalUse::end : SignalUse::save);
          },
      .parallel = true};
}

}  // namespace transxssm
