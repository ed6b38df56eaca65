// This rank's share of every layer under tensor parallelism: one rule for attention heads, SSD heads and
// groups, FFN width and vocabulary. Where there are fewer KV heads (groups) than ranks, neighbours hold
// copies of one.
#pragma once

#include "model/config.h"
#include "parallel/sharding.h"

namespace transxssm {

struct Shard {
  int tp_rank = 0;
  UnitShare heads;             // attention heads
  UnitShare ssd_heads;         // state-space heads
  UnitShare kv_heads;          // key/value heads
  UnitShare groups;            // SSD state groups
  UnitShare ff;                // FFN columns
  VocabularyShare vocabulary;  // rows of embedding and head

  // Throws UsageError where the model cannot be cut so (mesh_problems() of model/config.h says so earlier).
  static Shard of(const ModelConfig& config, int tp, int tp_rank);
};

}  // namespace transxssm
