// A training job from its first line to its exit code: data, resume, the loop over steps, validation,
// checkpoints, metrics. The step itself is launch/trainer.h.
#pragma once

#include <functional>
#include <string>

#include "launch/config.h"
#include "launch/signals.h"
#include "parallel/communicator.h"
#include "runtime/output_file.h"
#include "runtime/stream.h"

namespace transxssm {

struct TrainingRunOptions {
  std::string resume = "auto";        // "auto", "none", or what named_checkpoint takes
  bool trace = false;                 // of the third step
  OutputFiles* trace_file = nullptr;  // on rank 0, where there is a trace
  std::string host;                   // where this rank runs, for the trace
  OutputFiles* stop_file = nullptr;   // on rank 0: written after a save that a signal asked for, "step N"
  std::string resume_command;         // what a user types to go on; printed when the run stops early
  // Called once configuration, data, tokenizer and checkpoint were found right, before anything is written.
  std::function<void()> before_writing = [] {};
  // What the outside asks after step `step`; the same answer on every rank.
  std::function<AgreedSignal(Communicator& world, int64_t step)> signal = [](Communicator& world, int64_t) {
    return agree_on_signal(world);
  };
};

// Collective. Returns the exit code: ok, or preempted after a save that a request asked for.
int run_training(const TrainConfig& config, Communicator& world, Stream& stream,
                 const TrainingRunOptions& options);

}  // namespace transxssm
