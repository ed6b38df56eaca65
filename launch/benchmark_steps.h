// Training steps for benchmarks: random tokens, timed one by one.
#pragma once

#include <vector>

#include "launch/trainer.h"
#include "launch/worker.h"
#include "runtime/trace.h"

namespace transxssm {

double median(std::vector<double> values);

// Memory that steps asked for. Zero after the first steps, which take all that is needed.
struct StepAllocations {
  int64_t arenas = 0;  // by the calling thread: memory of tensors, on the host or the device
  int64_t arena_bytes = 0;
  // Pages of host memory that the process touched for the first time, whoever took them: minor faults times
  // the size of a page.
  int64_t fresh_bytes = 0;
};
// Counts from its making on.
class AllocationCounter {
 public:
  AllocationCounter();
  StepAllocations count() const;

 private:
  StepAllocations begin_;
};

class TimedTraining {
 public:
  // Collective.
  TimedTraining(const TrainConfig& config, Worker& worker, Stream& stream);

  // Seconds of one step of all ranks.
  double step();
  // One step with its spans.
  struct TracedStep {
    double seconds = 0;
    std::vector<TraceEvent> events;
  };
  TracedStep trace_step();
  int64_t tokens() const { return tokens_; }  // of a step, over all ranks

 private:
  Worker& worker_;
  Stream& stream_;
  Trainer trainer_;
  int64_t tokens_;
};

}  // namespace transxssm
