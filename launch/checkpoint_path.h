// Where checkpoints are: for a run, and for the directories that users name.
#pragma once

#include <string>

#include "launch/config.h"

namespace transxssm {

// Where a run keeps its checkpoints: checkpoint.directory, inside the run directory unless it is absolute.
std::string checkpoints_directory(const TrainConfig& config);

// The same for a run directory on disk, by its config.textproto; empty where there is none, or none that can
// be read. For find_checkpoints and named_checkpoint.
std::string checkpoints_of_run(const std::string& run_directory);

// What --help says of a directory for which named_checkpoint looks.
inline constexpr const char* kCheckpointHelp =
    "a checkpoint, a directory of checkpoints or a run directory, or a link to one: the newest one there";

}  // namespace transxssm
