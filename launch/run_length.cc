#include "launch/run_length.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "checkpoint/layout.h"
#include "runtime/error.h"
#include "runtime/format.h"

namespace transxssm {
namespace {

constexpr std::pair<LearningRateKind, const char*> kKinds[] = {{LearningRateKind::cosine, "cosine"},
                                                               {LearningRateKind::linear, "linear"},
                                                               {LearningRateKind::constant, "constant"}};

LearningRateKind kind_of(const std::string& name) {
  for (const auto& [kind, text] : kKinds)
    if (name == text) return kind;
  throw UsageError("schedule.kind: \"{}\" is not known", name);
}

}  // namespace

int64_t steps_left(const TrainConfig& config, const Consumed& consumed) {
  const auto& s = config.schedule();
  const int64_t step = tokens_per_step(config);
  const int64_t left = s.steps() > 0                   ? std::max<int64_t>(0, s.steps() - consumed.steps)
                       : s.tokens() <= consumed.tokens ? 0
                                                       : (s.tokens() - consumed.tokens - 1) / step + 1;
  if (left > kMaxStep - consumed.steps)
    throw UsageError(
        "schedule.tokens: {} tokens are {} steps of {} rows x {} tokens{}; a run has at most {}: raise "
        "parallel.global_batch, or ask for fewer tokens",
        format_count(s.tokens()), format_count(left), config.parallel().global_batch(),
        config.data().sequence_length(),
        consumed.steps > 0 ? fmt::format(", beside the {} done", format_count(consumed.steps)) : "",
        format_count(kMaxStep));
  if (left > (kMaxTokens - consumed.tokens) / step)
    throw UsageError(
        "schedule.{}: {} steps of {} rows x {} tokens are more than {} tokens: lower one of them",
        s.steps() > 0 ? "steps" : "tokens", format_count(left), config.parallel().global_batch(),
        config.data().sequence_length(), format_count(kMaxTokens));
  return left;
}

int64_t tokens_at_end(const TrainConfig& config, const Consumed& consumed) {
  return consumed.tokens + steps_left(config, consumed) * tokens_per_step(config);
}

LearningRateSchedule settle_learning_rate(const TrainConfig& config, const Consumed& consumed) {
  const auto& s = config.schedule();
  const int64_t unit = tokens_per_step(config), end = tokens_at_end(config, consumed);
  // Whole steps, at least one where the fraction is not 0.
  const double steps = s.warmup_fraction() * (static_cast<double>(end) / static_cast<double>(unit));
  return {.kind = kind_of(s.kind()),
          .peak = config.optimizer().learning_rate(),
          .min_fraction = s.min_lr_fraction(),
          .warmup_tokens = std::min(end, static_cast<int64_t>(std::ceil(steps - 1e-9)) * unit),
          .end_tokens = end,
          .unit = unit};
}

SavedSchedule to_saved(const LearningRateSchedule& schedule) {
  SavedSchedule saved{.peak = schedule.peak,
                      .min_fraction = schedule.min_fraction,
                      .warmup_tokens = schedule.warmup_tokens,
                      .end_tokens = schedule.end_tokens,
                      .unit = schedule.unit};
  for (const auto& [kind, text] : kKinds)
    if (schedule.kind == kind) saved.kind = text;
  return saved;
}

LearningRateSchedule from_saved(const SavedSchedule& saved, const std::string& path) {
  for (const auto& [kind, text] : kKinds)
    if (saved.kind == text)
      return {.kind = kind,
              .peak = saved.peak,
              .min_fraction = saved.min_fraction,
              .warmup_tokens = saved.warmup_tokens,
              .end_tokens = saved.end_tokens,
              .unit = saved.unit};
  throw CheckpointError("{}: its learning rate follows \"{}\", which this program does not know", path,
                        saved.kind);
}

}  // namespace transxssm
