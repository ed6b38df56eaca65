// What a run tells about itself: metrics.jsonl and TensorBoard event files in the run directory, and the line
// a step prints. Written by rank 0 alone. A full or broken disk costs one warning, never the run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/append_file.h"
#include "runtime/tensorboard.h"

namespace transxssm {

// One number under a name that groups by slashes: train/loss, eval/loss, perf/tokens_per_second,
// memory/peak_bytes. The name is the JSON key and the TensorBoard tag.
struct Metric {
  std::string name;
  double value;
};

// What is known after a training step.
struct StepMetrics {
  int64_t step = 0;       // 1 for the first
  int64_t num_steps = 0;  // of the whole run
  double loss = 0;        // nats per token, mean over the valid targets of the global batch
  double grad_norm = 0;   // global, before clipping
  double learning_rate = 0;
  double tokens_per_second = 0;  // of the whole job
  double step_seconds = 0;
  int64_t tokens = 0;  // consumed since step 1, all starts together
  double eta_seconds = 0;
};

// `step i/N | loss | grad | lr | tok/s | ms | tokens | eta`: one line, no control codes.
std::string format_step_line(const StepMetrics& metrics);

// Facts about the run for the header line and the report's table: ("parameters", "1,234,567"), ("mesh", "pp
// 2, tp 2").
using RunFacts = std::vector<std::pair<std::string, std::string>>;

class MetricsWriter {
 public:
  // Appends to <run_directory>/metrics.jsonl (a header line {"format", "first_step", "time", "facts"} opens
  // each start of the run) and opens a new event file. `first_step` is 1, or the step after the checkpoint
  // resumed from: records of it and later steps above that header are void. The directory must exist.
  MetricsWriter(const std::string& run_directory, int64_t first_step, const RunFacts& facts);

  // One object: {"step", "time", name: value...}, doubles in the shortest form that reads back to the same
  // bits. What is not finite is null, and {"not_finite": {name: "nan" | "inf" | "-inf"}} says so.
  void write(int64_t step, std::span<const Metric> metrics);
  // train/loss, train/grad_norm, train/learning_rate, train/tokens, perf/tokens_per_second, perf/step_ms,
  // then `more`.
  void write(const StepMetrics& metrics, std::span<const Metric> more = {});

 private:
  void warn_once(const std::string& path, const std::string& error);

  AppendFile jsonl_;
  EventWriter events_;
  bool warned_ = false;
};

// A metrics.jsonl read back: of records that a later start of the run made void, none is left.
struct MetricsHistory {
  struct Series {
    std::vector<int64_t> step;
    std::vector<double> value;  // NaN where it was not finite
  };
  RunFacts facts;                                      // of the last start
  std::vector<int64_t> resumed_steps;                  // first step of each start but the first
  std::vector<std::pair<std::string, Series>> series;  // in order of appearance

  const Series* find(std::string_view name) const;
};

// Half a line, as a killed process leaves it, is skipped. Throws DataError where the file cannot be read, has
// no header, or holds a record that is not ours.
MetricsHistory read_metrics(const std::string& path);

}  // namespace transxssm
