#include "model/shard.h"

namespace transxssm {

Shard Shard::of(const ModelConfig& config, int tp, int tp_rank) {
  Shard shard;
  shard.tp_rank = tp_rank;
  shard.heads = cut_units("num_heads", config.num_heads, tp, tp_rank, false);
  shard.ssd_heads = cut_units("state-space heads", config.ssd_heads(), tp, tp_rank, false);
  // Only what some layer has: other fields must not forbid a mesh.
  const int64_t attention = config.num_attention_layers();
  if (attention > 0) shard.kv_heads = cut_units("num_kv_heads", config.kv_heads(), tp, tp_rank, true);
  if (attention < config.num_layers)
    shard.groups = cut_units("num_groups", config.groups(), tp, tp_rank, true);
  if (config.d_ff > 0) shard.ff = cut_units("d_ff", config.d_ff, tp, tp_rank, false);
  shard.vocabulary = cut_vocabulary(config.vocab_size, tp, tp_rank);
  return shard;
}

}  // namespace transxssm
