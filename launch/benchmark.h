// `transxssm bench`: speed of whole training steps and of single operations, beside what the machine can do
// at the most (kernels/peak.h) and beside a peer that runs in turn with us.
#pragma once

#include <string>
#include <vector>

#include "kernels/peak.h"
#include "launch/config.h"
#include "launch/worker.h"
#include "runtime/trace.h"

namespace transxssm {

// A shape to time. `preset` is one of the model's presets, or a 320M shape cut to eight layers: 320m-8l,
// llama-8l.
struct BenchmarkShape {
  std::string preset;
  int64_t rows = 1;    // of one step, over all ranks
  int64_t tokens = 0;  // of a row
  std::string dtype;   // f32 or bf16
};

// A configuration that trains this shape on random tokens. UsageError where the shape is not legal.
TrainConfig benchmark_config(const BenchmarkShape& shape, std::vector<std::string> overrides, int world_size);

// Time of one operation in a step, all its calls together.
struct OperationTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0;
  double floor_seconds = 0;  // by bytes or by arithmetic, whichever is longer, at the measured peaks
};
// Of the events that say what they cost (on a device: those with the device's times), longest first.
std::vector<OperationTime> operation_times(const std::vector<TraceEvent>& events, const MachinePeaks& peaks,
                                           DType dtype);

struct TrainBenchmarkOptions {
  int warmup = 2;
  int steps = 6;
  int rounds = 3;       // with a peer: ours and the peer's in turn
  std::string against;  // command of a peer that prints a JSON line with tokens_per_s; empty: none
  std::string json;     // file to write; empty: none
  std::string trace;    // file for a Chrome trace of one step of every rank; empty: none
};

// Runs, prints tables on rank 0, and writes what the options ask for. Collective.
void benchmark_training(const TrainConfig& config, const BenchmarkShape& shape,
                        const TrainBenchmarkOptions& options, Worker& worker, Stream& stream);

// Every operation at the sizes of `shape`, each by itself; `filter` is a part of the names wanted. One rank.
void benchmark_operations(const BenchmarkShape& shape, const std::string& filter, const std::string& json,
                          Stream& stream);

// The number under "tokens_per_s" of the last line of JSON that `command` prints. UsageError where it fails
// or prints none.
double run_peer(const std::string& command);

}  // namespace transxssm
