// The training data that a configuration names.
#pragma once

#include "launch/config.h"
#include "runtime/data/sampler.h"

namespace transxssm {

// The files of the section `data` that do not exist: {field, what is wrong}.
std::vector<std::pair<std::string, std::string>> missing_files(const TrainConfig& config);

// Opens and checks all sources of data.train. DataError, which names all files of the section that are
// missing.
TrainingData open_training_data(const TrainConfig& config);

}  // namespace transxssm
