// The validation loss of a run: rows that training never sees, their loss, metrics and log line.
//
// Two figures, which never stand in one curve: eval/loss over a sample of log.validation_rows rows, the same
// ones at every step it is computed; and eval/final_loss, after the last step, over
// log.final_validation_rows. Of a blend both are the mean of the sources' losses by weight, whatever number
// of rows each source has, and eval/loss/NAME and eval/final_loss/NAME are the losses of its sources.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launch/config.h"
#include "launch/signals.h"
#include "launch/trainer.h"
#include "launch/training_data.h"
#include "runtime/data/sampler.h"
#include "runtime/data/tokenizer.h"
#include "runtime/metrics.h"

namespace transxssm {

class Validation {
 public:
  // With neither data.validation nor a held-out part of data.train run() does nothing. `tokenizer`, or null,
  // gives the length of every token for bits per byte. DataError.
  Validation(const TrainConfig& config, const DataFiles& files, const Tokenizer* tokenizer);
  bool empty() const { return !set_; }

  // Collective. The losses in nats per token and bits per byte; rank 0 writes `metrics` and the log. Computes
  // the rows asked for and no more, but that a microbatch is always whole. `signal` is asked between parts of
  // a long one: where a rank is to stop, the rest is left out and nothing written. Returns the strongest
  // request seen.
  AgreedSignal run(Trainer& trainer, bool final, MetricsWriter* metrics,
                   const std::function<AgreedSignal()>& signal);

 private:
  // Of one source.
  struct Sums {
    double loss = 0;     // nats
    double targets = 0;  // valid ones
    double bytes = 0;    // of their text
  };
  struct Figures {
    double loss = 0, bits_per_byte = 0;  // NaN where unknown
    std::vector<double> of_source;       // loss
    double targets = 0;
  };
  AgreedSignal add_rows(Trainer& trainer, const std::vector<int64_t>& from, const std::vector<int64_t>& to,
                        std::vector<Sums>& sums, const std::function<AgreedSignal()>& signal);
  Figures figures(Trainer& trainer, std::vector<Sums> sums) const;
  void append(std::vector<Metric>& metrics, const char* prefix, const Figures& figures) const;
  std::string describe(const Figures& figures) const;

  std::optional<ValidationSet> set_;
  std::vector<std::string> names_;    // of the sources, in metrics
  std::vector<int32_t> bytes_of_id_;  // [V]; empty without a tokenizer
  int64_t rows_, final_rows_;         // of a sample; of the final figure, 0: all
};

}  // namespace transxssm
