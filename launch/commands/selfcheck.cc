#include "launch/commands/selfcheck.h"

#include <chrono>

#include "launch/selfcheck.h"
#include "launch/worker.h"

namespace transxssm {
namespace {

int check_with_config(const Arguments& arguments, Worker& worker) {
  for (const char* name : {"--trajectory", "--write"})
    if (arguments.has(name)) throw UsageError("{} is for --golden", name);
  if (worker.size() == 1)
    throw UsageError(
        "--config compares a mesh with one rank: start several, such as mpirun -n 4 transxssm "
        "selfcheck --config FILE --set parallel.tp=2");
  const std::string file = arguments.text("--config");
  std::vector<std::string> overrides = arguments.list("--set");
  const TrainConfig config = load_config(file, overrides, worker.size());
  overrides.insert(overrides.end(), {"parallel.pp=1", "parallel.dp=1", "parallel.tp=1"});
  const TrainConfig alone = load_config(file, overrides, 1);
  worker.world().set_timeout(std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(config.parallel().timeout_seconds())));
  Stream stream(worker.take_threads(config.parallel().threads_per_rank(), config.parallel().pin_threads()));
  check_mesh_run(config, alone, arguments.integer("--steps", 1, 1000000), worker.world(), stream);
  return 0;
}

int selfcheck(const Arguments& arguments, Worker& worker) {
  if (arguments.has("--golden") == arguments.has("--config"))
    throw UsageError("give --golden DIR or --config FILE, one of the two");
  if (arguments.has("--config")) return check_with_config(arguments, worker);
  if (arguments.has("--steps")) throw UsageError("--steps is for --config");
  Stream stream(worker.take_threads(0, false));
  check_golden({.folder = arguments.text("--golden"),
                .overrides = arguments.list("--set"),
                .trajectory = arguments.flag("--trajectory"),
                .write = arguments.text("--write")},
               worker.world(), stream);
  return 0;
}

}  // namespace

Command selfcheck_command() {
  const std::string reference = "Against reference values", mesh = "A mesh against one rank";
  return {.path = "selfcheck",
          .summary = "Is it right? Compare with reference values, or a mesh with one rank; exit 6 where not",
          .example = "mpirun -n 2 transxssm selfcheck --golden DIR --set parallel.tp=2",
          .options =
              {{.name = "--golden",
                .value = "DIR",
                .help = "folder with a Hugging Face model and golden.safetensors (launch/golden.h)",
                .group = reference},
               {.name = "--trajectory", .help = "refuse a folder without training steps", .group = reference},
               {.name = "--write",
                .value = "FILE",
                .help = "write what was computed, in the form of golden.safetensors",
                .group = reference},
               {.name = "--config",
                .value = "FILE",
                .help = "a training configuration with its data; runs under mpirun",
                .group = mesh},
               {.name = "--steps", .value = "K", .help = "training steps", .standard = "5", .group = mesh},
               {.name = "--set",
                .value = "PATH=VALUE",
                .help = "override one field, such as parallel.tp=2; with --golden only of section parallel",
                .repeatable = true}},
          .run =
              [](const Arguments& arguments) {
                return run_worker([&](Worker& worker) { return selfcheck(arguments, worker); });
              },
          .parallel = true};
}

}  // namespace transxssm
