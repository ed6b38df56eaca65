#include "model/network.h"

#include <algorithm>

namespace transxssm {

Network::Network(const ModelConfig& config, const Shard& shard, const StageCut& cut, Communicator& tp,
                 int64_t positions)
    : config_(config), cut_(cut) {
  auto carve_tables = [&](Carver& carver) {
    tables_.positions = RotaryTable::carve(carver, positions, config.head_dim());
    tables_.chunk = RotaryTable::carve(carver, config.chunk + 1, config.d_state);
  };
  Carver count;
  carve_tables(count);
  table_arena_ = Arena(count.used());
  Carver carver = table_arena_.carver();
  carve_tables(carver);
  tables_.positions.fill(rotary_frequencies(config, config.head_dim(), positions), rotary_factor(config));
  tables_.chunk.fill(rotary_frequencies(config, config.d_state, positions), 1);

  const Boundary boundary(tp);
  const bool split_tie = config.tie_embeddings && cut.has_embedding != cut.has_head;
  if (cut.has_embedding) embedding_.emplace(config, shard, store_, boundary, split_tie);
  for (int i = 0; i < cut.num_layers; ++i)
    layers_.push_back(make_layer(config, shard, cut.first_layer + i, store_, tables_, boundary));
  if (cut.has_head) {
    const bool tied_here = config.tie_embeddings && cut.has_embedding;
    head_.emplace(config, shard, store_, boundary, tp, tied_here ? embedding_->parameter() : -1);
  }
}

void mark_documents(const Tensor& position, const Tensor& start, const Tensor& first_key) {
  for (int64_t b = 0; b < position.size(0); ++b) {
    for (int64_t t = 0; t < position.size(1); ++t) {
      const int32_t p = position.at<int32_t>({b, t});
      start.at<uint8_t>({b, t}) = p == 0;
      first_key.at<int32_t>({b, t}) = static_cast<int32_t>(std::max<int64_t>(0, t - p));
    }
  }
}

}  // namespace transxssm
