// The program `transxssm`: the table of its commands.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "launch/backends.h"
#include "launch/command.h"
#include "launch/commands/bench.h"
#include "launch/commands/checkpoint.h"
#include "launch/commands/data.h"
#include "launch/commands/generate.h"
#include "launch/commands/hugging_face.h"
#include "launch/commands/selfcheck.h"
#include "launch/commands/train.h"
#include "launch/failure.h"
#include "launch/standard_streams.h"
#include "launch/version.h"
#include "launch/worker.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

Program program() {
  Program p;
  p.name = "transxssm";
  p.summary = "Distributed pretraining of TransXSSM, a hybrid of state-space and attention layers.";
  p.version = version_text();
  const auto add = [&p](const std::vector<Command>& commands) {
    p.commands.insert(p.commands.end(), commands.begin(), commands.end());
  };
  add(data_commands());
  add({train_command()});
  add(checkpoint_commands());
  add(hugging_face_commands());
  add({generate_command(), selfcheck_command()});
  add(bench_commands());
  for (Command& command : p.commands) {
    if (command.parallel) continue;
    // Several processes doing the work of one would overwrite each other's files.
    command.run = [path = command.path, run = command.run](const Arguments& arguments) {
      if (const int size = launched_rank(std::getenv).size; size > 1)
        throw UsageError("{} runs as one process, but the launcher started {}; run it without mpirun or srun",
                         path, size);
      return run(arguments);
    };
  }
  return p;
}

// Mistakes on the command line are the same on every rank: one of them speaks.
int fail(const Failure& failure) {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank == nullptr) rank = std::getenv("SLURM_PROCID");
  if (!failure.message.empty() && (rank == nullptr || std::atoi(rank) == 0))
    std::fprintf(stderr, "transxssm: error: %s\n", printable_message(failure.message).c_str());
  return failure.code;
}

}  // namespace
}  // namespace transxssm

int main(int argc, char** argv) {
  using namespace transxssm;
  prepare_standard_streams();
  try {
    register_backends();
    const int code = run_program(program(), std::vector<std::string>(argv + 1, argv + argc));
    flush_standard_output();
    return code;
  } catch (...) {
    return fail(current_failure());
  }
}
