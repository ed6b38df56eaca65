// How long a run trains and at what rate: functions of its configuration and of what it has consumed, without
// a mesh, so that every rank and every resumed run finds the same.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/checkpoint.h"
#include "launch/config.h"
#include "model/optimizer.h"

namespace transxssm {

// Since the beginning of the run, over all its starts.
struct Consumed {
  int64_t steps = 0;    // attempted
  int64_t updates = 0;  // applied: the optimizer's bias correction
  int64_t rows = 0;
  int64_t tokens = 0;
};

// From `consumed` to the end of the run: to step schedule.steps, or to the first step that has consumed
// schedule.tokens; 0 where it is reached. UsageError where the run would come to more steps or tokens than a
// checkpoint can count.
int64_t steps_left(const TrainConfig& config, const Consumed& consumed = {});
// Tokens consumed once those steps are done.
int64_t tokens_at_end(const TrainConfig& config, const Consumed& consumed = {});

// The curve of this configuration, settled anew: fractions become tokens of a run that ends where one from
// `consumed` will end.
LearningRateSchedule settle_learning_rate(const TrainConfig& config, const Consumed& consumed = {});

// As a checkpoint keeps it. CheckpointError for a kind that is not known; `path` stands for the checkpoint.
SavedSchedule to_saved(const LearningRateSchedule& schedule);
LearningRateSchedule from_saved(const SavedSchedule& saved, const std::string& path);

}  // namespace transxssm
