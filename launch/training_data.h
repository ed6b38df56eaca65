// The training data that a configuration names.
#pragma once

#include "launch/config.h"
#include "runtime/data/sampler.h"

namespace transxssm {

// Opens and checks all sources of data.train. DataError.
TrainingData open_training_data(const TrainConfig& config);

}  // namespace transxssm
