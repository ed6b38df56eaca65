// The validation loss of a run: rows that training never sees, their loss, metrics and log line.
#pragma once

#include <optional>
#include <vector>

#include "launch/config.h"
#include "launch/trainer.h"
#include "runtime/data/sampler.h"
#include "runtime/data/tokenizer.h"
#include "runtime/metrics.h"

namespace transxssm {

class Validation {
 public:
  // Opens data.validation, or the held-out part of data.train; with neither, run() does nothing. `tokenizer`,
  // or null, gives the length of every token for bits per byte. DataError.
  Validation(const TrainConfig& config, const Tokenizer* tokenizer);
  bool empty() const { return !set_; }

  // Collective. Loss over the first `rows` rows, 0: all of them, in nats per token and bits per byte. Rank 0
  // writes `metrics` and the log.
  void run(Trainer& trainer, int64_t rows, MetricsWriter* metrics);

 private:
  std::optional<ValidationSet> set_;
  std::vector<int32_t> bytes_of_id_;  // [V]; empty without a tokenizer
};

}  // namespace transxssm
