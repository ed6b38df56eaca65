#include "model/shard.h"

namespace transxssm {

Shard Shard::of(const ModelConfig& config, int tp, int tp_rank) {
  Shard shard;
  shard.tp_rank = tp_rank;
  shard.heads = cut_units("num_heads", config.num_heads, tp, tp_rank, false);
  shard.kv_heads = cut_units("num_kv_heads", config.kv_heads(), tp, tp_rank, true);
  shard.groups = cut_units("num_groups", config.groups(), tp, tp_rank, true);
  shard.ff = cut_units("d_ff", config.d_ff, tp, tp_rank, false);
  shard.vocabulary = cut_vocabulary(config.vocab_size, tp, tp_rank);
  return shard;
}

}  // namespace transxssm
