// One rank's part of a checkpoint: its data file and the table of its boxes.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"

namespace transxssm {

// A box to save, and the index of its tensor in the manifest.
struct OwnedBox {
  const CheckpointTensor* tensor = nullptr;
  int id = 0;
};

// Bytes of the data file.
int64_t data_file_bytes(std::span<const OwnedBox> boxes);

// Writes and syncs both files under `directory`/shards, then the directory. Throws std::system_error.
Written write_shard(FileSystem& files, const std::string& directory, int shard,
                    std::span<const OwnedBox> boxes);

}  // namespace transxssm
