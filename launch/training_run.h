// A training job from its first line to its exit code: data, resume, the loop over steps, validation, checkpoints,
// metrics. The step itself is launch/trainer.h.
#pragma once

#include <functional>
#include <string>

#include "launch/config.h"
#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace transxssm {

// What the outside asks of a running job, polled between steps.
struct StopRequests {
  std::function<bool()> save_and_stop = [] { return false; };
  std::function<bool()> save = [] { return false; };  // true once a request
};

struct TrainingRunOptions {
  std::string resume = "auto";  // "auto", "none", or a checkpoint
  std::string resume_command;   // what a user types to go on; printed when the run stops early
  StopRequests requests;
  std::function<void(int64_t step, const char* doing)> progress = [](int64_t, const char*) {};
};

// Collective. Returns the exit code: ok, or preempted after a save that a request asked for.
int run_training(const TrainConfig& config, Communicator& world, Stream& stream, const TrainingRunOptions& options);

}  // namespace transxssm
