// `transxssm bench`: speed of whole training steps and of single operations, beside what the machine can do
// at the most (kernels/peak.h) and beside a peer that runs in turn with us; speed and memory over the length
// of rows.
#pragma once

#include <string>
#include <vector>

#include "launch/config.h"
#include "launch/worker.h"
#include "runtime/output_file.h"
#include "runtime/stream.h"

namespace transxssm {

// A shape to time. `preset` is one of the model's presets, a 320M shape cut to eight layers (320m-8l,
// llama-8l), or llama-tiny: a Llama of tiny's sizes.
struct BenchmarkShape {
  std::string preset;
  int64_t rows = 1;    // of one step, over all ranks
  int64_t tokens = 0;  // of a row
  std::string dtype;   // f32 or bf16
};

// A configuration that trains this shape on random tokens. UsageError where the shape is not legal.
TrainConfig benchmark_config(const BenchmarkShape& shape, std::vector<std::string> overrides, int world_size);

struct TrainBenchmarkOptions {
  int warmup = 2;
  int steps = 6;
  int rounds = 3;       // with a peer: ours and the peer's in turn
  std::string against;  // command of a peer that prints a JSON line with tokens_per_s; empty: none
  // Files to write, opened on rank 0; null: none.
  OutputFiles* json = nullptr;
  OutputFiles* markdown = nullptr;    // the table of operations
  OutputFiles* trace_file = nullptr;  // a Chrome trace of one step of every rank
  bool trace = false;                 // on every rank: there is a trace_file
};

// Runs, prints tables on rank 0, and writes what the options ask for. Collective.
void benchmark_training(const TrainConfig& config, const BenchmarkShape& shape,
                        const TrainBenchmarkOptions& options, Worker& worker, Stream& stream);

// Every operation at the sizes of `shape`, each by itself; `filter` is a part of the names wanted. One rank.
void benchmark_operations(const BenchmarkShape& shape, const std::string& filter, OutputFiles* json,
                          Stream& stream);

struct LengthBenchmarkOptions {
  std::string preset;    // as of a BenchmarkShape
  std::string baseline;  // another, timed in turn with it; empty: none
  std::string dtype;
  int64_t tokens = 0;            // of a step, at every length
  std::vector<int64_t> lengths;  // of a row, ascending; each divides `tokens`
  bool whole_step = false;       // all rows are one microbatch, else each row is one
  int warmup = 1;                // steps before those that are timed, at each length, in each round
  int steps = 1;
  int rounds = 2;  // over all lengths, the models in turn at each
  std::vector<std::string> overrides;
  OutputFiles *json = nullptr, *plot = nullptr;  // files to write; null: none
};

// Speed, attention's time and memory over the length of rows, and whether speed falls by no more than
// attention's share and memory lies on a line. One rank; prints, and writes what the options ask for.
void benchmark_lengths(const LengthBenchmarkOptions& options, Worker& worker, const Device& device,
                       int num_threads);

// Bytes = base + per_token x tokens of a row, by least squares of the relative errors.
struct MemoryLine {
  double base = 0, per_token = 0;
  double deviation = 0;  // the largest relative error
  bool linear() const { return deviation <= 0.05; }
};
MemoryLine fit_memory(const std::vector<int64_t>& lengths, const std::vector<int64_t>& bytes);

// The number under "tokens_per_s" of the last line of JSON that `command` prints. UsageError where it fails
// or prints none.
double run_peer(const std::string& command);

}  // namespace transxssm
