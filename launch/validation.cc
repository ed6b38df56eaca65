#include "launch/validation.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "launch/progress.h"
#include "runtime/format.h"
#include "runtime/log.h"

namespace transxssm {

Validation::Validation(const TrainConfig& config, const Tokenizer* tokenizer) {
  const auto& d = config.data();
  if (tokenizer != nullptr)
    for (int32_t id = 0; id < config.model().vocab_size(); ++id)
      bytes_of_id_.push_back(tokenizer->has_token(id) && !tokenizer->is_special(id)
                                 ? static_cast<int32_t>(tokenizer->token_bytes(id).size())
                                 : 0);
  ValidationSpec spec{.tokens = d.sequence_length(),
                      .vocab_size = config.model().vocab_size(),
                      .end_of_document = tokenizer != nullptr ? tokenizer->end_of_document().value_or(0) : 0,
                      .pack_documents = d.pack_documents()};
  if (!d.validation().empty()) {
    spec.prefixes = {d.validation()};
  } else if (d.validation_fraction() > 0) {
    spec.fraction = d.validation_fraction();
    for (const auto& source : d.train()) spec.prefixes.push_back(source.prefix());
  } else {
    return;
  }
  set_.emplace(spec);
}

void Validation::run(Trainer& trainer, int64_t rows, MetricsWriter* metrics) {
  if (!set_) return;
  publish_progress(trainer.steps_done(), "validate");
  const int64_t num_rows = rows == 0 ? set_->num_rows() : std::min(rows, set_->num_rows());
  EvaluationSum sum;
  Batch& batch = trainer.batch();
  for (int64_t first = 0; first < num_rows; first += batch.rows() * trainer.mesh().shape().dp) {
    const int64_t mine = first + trainer.first_row();
    set_->fill(mine, batch);
    for (int64_t i = std::max<int64_t>(0, num_rows - mine); i < batch.rows(); ++i)
      zero(batch.valid.select(0, i));
    const EvaluationSum part = trainer.evaluate();
    sum.loss += part.loss;
    sum.valid_targets += part.valid_targets;
  }
  if (metrics == nullptr) return;
  if (sum.valid_targets == 0) return log_warning("validation: no target in the first {} rows", num_rows);
  const double loss = sum.loss / static_cast<double>(sum.valid_targets);
  const double bytes =
      bytes_of_id_.empty() ? 0 : static_cast<double>(set_->text_bytes(bytes_of_id_, num_rows));
  const double bits_per_byte = bytes > 0 ? sum.loss / std::numbers::ln2 / bytes : NAN;
  metrics->write_validation(trainer.steps_done(), loss, bits_per_byte);
  log_info("validation at step {}: {:.4f} nats per token{} over {} tokens", trainer.steps_done(), loss,
           bytes > 0 ? fmt::format(", {:.4f} bits per byte", bits_per_byte) : "",
           format_count(sum.valid_targets));
}

}  // namespace transxssm
