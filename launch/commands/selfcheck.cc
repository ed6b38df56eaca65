#include "launch/commands/selfcheck.h"

#include <chrono>

#include "launch/device.h"
#include "launch/option_output.h"
#include "launch/plan.h"
#include "launch/selfcheck.h"
#include "launch/worker.h"

namespace transxssm {
namespace {

Stream make_stream(const TrainConfig& config, Worker& worker) {
  const auto& p = config.parallel();
  const Device device = choose_device(p.device(), worker.local_rank());
  check_precision(config, device);
  return Stream(device, worker.take_threads(p.threads_per_rank(), p.pin_threads()));
}

int check_with_config(const Arguments& arguments, Worker& worker) {
  for (const char* name : {"--trajectory", "--write", "--overwrite"})
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
  Stream stream = make_stream(config, worker);
  use_device_of(stream, worker);
  check_mesh_run(config, alone, arguments.integer("--steps", 1, 1000000), worker.world(), stream);
  return 0;
}

int selfcheck(const Arguments& arguments, Worker& worker) {
  if (arguments.has("--golden") == arguments.has("--config"))
    throw UsageError("give --golden DIR or --config FILE, one of the two");
  if (arguments.has("--config")) return check_with_config(arguments, worker);
  if (arguments.has("--steps")) throw UsageError("--steps is for --config");
  const GoldenFolder golden = read_golden(posix_file_system(), arguments.text("--golden"));
  if (arguments.flag("--trajectory") && !golden.trajectory)
    throw CheckpointError("{}/golden.safetensors: tensor lr is missing: no trajectory", golden.path);
  const std::string folder = arguments.text("--golden");
  const auto write =
      option_output(worker.rank() == 0 ? arguments.text("--write") : "", arguments.flag("--overwrite"),
                    {folder + "/golden.safetensors", folder + "/model.safetensors", folder + "/config.json"});
  const TrainConfig config = golden_config(golden, arguments.list("--set"), worker.size());
  Stream stream = make_stream(config, worker);
  use_device_of(stream, worker);
  check_golden(golden, config, worker.world(), stream, write.get());
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
               {.name = "--overwrite", .help = "replace the file that --write names", .group = reference},
               {.name = "--config",
                .value = "FILE",
                .help = "a training configuration with its data; runs under mpirun",
                .group = mesh},
               {.name = "--steps", .value = "K", .help = "training steps", .standard = "5", .group = mesh},
               {.name = "--set",
                .value = "PATH=VALUE",
                .help = "override one field, such as parallel.tp=2; with --golden only of sections parallel "
                        "and precision",
                .repeatable = true}},
          .run =
              [](const Arguments& arguments) {
                return run_worker([&](Worker& worker) { return selfcheck(arguments, worker); });
              },
          .parallel = true};
}

}  // namespace transxssm
