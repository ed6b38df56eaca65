// The checkpoints of a run, as they are on disk: nothing here is remembered between calls.
#pragma once

#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"

namespace transxssm {

// The newest checkpoint before `step` whose every byte passes; reads the data of each it looks at.
std::optional<CheckpointInfo> whole_before(FileSystem& files, const std::string& checkpoints_dir,
                                           int64_t step);

// A sentence for a refusal of `path`: which older checkpoint is whole and which flag takes it.
std::string fallback_hint(FileSystem& files, const std::string& path);

// Deletes a directory of checkpoints_dir so that no half of it is ever taken for a checkpoint. Throws
// std::system_error.
void discard(FileSystem& files, const std::string& checkpoints_dir, const std::string& name, int64_t step);

}  // namespace transxssm
