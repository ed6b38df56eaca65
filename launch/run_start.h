// Where a run starts: all that is read and checked before anything is written.
#pragma once

#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "launch/config.h"
#include "launch/resume.h"
#include "launch/training_data.h"
#include "launch/validation.h"
#include "parallel/communicator.h"
#include "runtime/data/sampler.h"
#include "runtime/data/tokenizer.h"

namespace transxssm {

struct RunStart {
  TrainState state;     // of the run so far
  CheckpointText text;  // for the checkpoints to come
  ResumePlan plan;
  std::optional<LoadedCheckpoint> checkpoint;  // to go on from, all but the tensors
  bool own = false;                            // it lies in this run's own checkpoints directory
  bool evaluated = false;                      // own, and the validation loss of its step is in the metrics
};

// The files that a configuration names, opened and checked. Collective. DataError, UsageError.
struct RunInputs {
  RunInputs(const TrainConfig& config, Communicator& world);
  std::optional<Tokenizer> tokenizer;
  DataFiles files;
  TrainingData data;
  Validation validation;
};

// Collective. Chooses the checkpoint that `resume` ("auto", "none" or a path) means and compares it with the
// configuration. UsageError, CheckpointError.
RunStart find_start(const TrainConfig& config, const RunInputs& inputs, Communicator& world,
                    FileSystem& files, const std::string& checkpoints, const std::string& resume);

}  // namespace transxssm
