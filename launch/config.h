// The configuration of a training run: a file, overrides, defaults and every check that needs no data.
// Precedence: defaults < file < overrides, left to right.
#pragma once

#include <string>
#include <vector>

#include "launch/train_config.pb.h"
#include "model/config.h"

namespace transxssm {

// Every field is set once load_config has returned it.
using TrainConfig = proto::TrainConfig;

// Reads `file` (textproto; JSON where the name ends in .json; none where empty) and applies overrides such as
// "parallel.tp=2", "data.train=a,b", "data.train[0].weight=2". `world_size` is the number of ranks of the
// job; 0 where it is not known yet, which leaves out the checks that need it and parallel.dp as it is. Throws
// one UsageError that lists every mistake as "file:line:column: field: what is wrong".
TrainConfig load_config(const std::string& file, const std::vector<std::string>& overrides, int world_size);

// The same for text in memory; `name` stands for the file in messages.
TrainConfig parse_config(const std::string& text, const std::string& name,
                         const std::vector<std::string>& overrides, int world_size);

// The textproto that load_config reads back to the same configuration, digit by digit.
std::string to_text(const TrainConfig& config);

// The section `model`, for model/.
ModelConfig model_config(const TrainConfig& config);

int64_t tokens_per_step(const TrainConfig& config);   // global_batch * sequence_length
int64_t num_microbatches(const TrainConfig& config);  // of one step on one replica

}  // namespace transxssm
