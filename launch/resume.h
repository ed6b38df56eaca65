// What a run that goes on from a checkpoint takes over, what has changed since, and whether it may go on: one
// law for all, as a function of what the checkpoint says and of today's configuration.
//
// Rows, tokens, steps and updates are counted on. The learning rate is a function of the tokens; its warm-up
// and its end stay as they were settled at the first start, whatever becomes of batch and length. A changed
// setting of the curve, or of schedule.steps or schedule.tokens, is taken over where the learning rate of the
// last step stays what it was; else it is refused, unless schedule.rebase is true. A run that has come to the
// end of its curve may go on at the learning rate it ended with.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "launch/config.h"
#include "launch/run_length.h"

namespace transxssm {

struct ResumePlan {
  Consumed consumed;
  LearningRateSchedule learning_rate;
  int64_t last_step = 0;                 // the run ends after it
  std::vector<std::string> differences;  // a line each: field, old -> new, consequence
};

// A run that begins.
ResumePlan plan_start(const TrainConfig& config);

// `now` holds the digests of today's data, `checkpoint` all but the tensors. UsageError where the model or
// the tokenizer is another one, or where the learning rate would jump; CheckpointError where the checkpoint
// says what cannot be.
ResumePlan plan_resume(const TrainConfig& config, const TrainState& now, const LoadedCheckpoint& checkpoint);

}  // namespace transxssm
