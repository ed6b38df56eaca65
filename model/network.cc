#include "model/network.h"

#include <algorithm>
#include <utility>

#include "parallel/local.h"

namespace transxssm {

Network::Network(const ModelConfig& config, const Shard& shard, const StageCut& cut, Communicator& tp,
                 int64_t positions, Communicator* group_sharers, const Precision& precision, Stream* stream)
    : config_(config), cut_(cut), precision_(precision), store_(precision.activation) {
  make_tables(positions, stream);
  const Boundary boundary(tp);
  if (group_sharers == nullptr) {
    TRANSXSSM_CHECK(!config.ssd_gate || shard.groups.num_copies == 1 || tp.size() == 1,
                    "who shares a state group?");
    alone_ = single_rank();
    group_sharers = alone_.get();
  }
  const bool split_tie = config.tie_embeddings && cut.has_embedding != cut.has_head;
  if (cut.has_embedding) embedding_.emplace(config, shard, store_, boundary, split_tie);
  for (int i = 0; i < cut.num_layers; ++i) {
    first_parameter_.push_back(store_.all().size());
    layers_.push_back(
        make_layer(config, shard, precision, cut.first_layer + i, store_, tables_, boundary, *group_sharers));
  }
  if (cut.has_head) {
    const bool tied_here = config.tie_embeddings && cut.has_embedding;
    head_.emplace(config, shard, precision, store_, boundary, tp, tied_here ? embedding_->parameter() : -1);
  }
}

int64_t Network::first_matrix(size_t i) const {
  int64_t first = store_.flat_gradient().num_elements();
  for (size_t p = first_parameter_[i]; p < store_.all().size(); ++p)
    if (store_.all()[p].spec.decays()) first = std::min(first, store_.all()[p].offset);
  return first;
}

void Network::make_tables(int64_t positions, Stream* stream) {
  const auto carve = [&](Carver& carver) {
    return LayerTables{.positions = RotaryTable::carve(carver, positions, config_.head_width()),
                       .chunk = RotaryTable::carve(carver, config_.chunk + 1, config_.d_state)};
  };
  Carver count;
  carve(count);
  const Device device = stream == nullptr ? Device{} : stream->device();
  Arena host_arena(count.used(), device, MemoryKind::pinned);
  Carver host_carver = host_arena.carver();
  const LayerTables host = carve(host_carver);
  if (config_.attention_rope)
    host.positions.fill(rotary_frequencies(config_, config_.head_width(), positions), rotary_factor(config_));
  else
    host.positions.fill(std::vector<double>(static_cast<size_t>(config_.head_width() / 2)), 1);
  host.chunk.fill(rotary_frequencies(config_, config_.d_state, positions), 1);
  if (device.is_cpu()) {
    table_arena_ = std::move(host_arena);
    tables_ = host;
    return;
  }
  table_arena_ = Arena(host_arena.bytes(), device);
  Carver carver = table_arena_.carver();
  tables_ = carve(carver);
  const Shape all = {host_arena.bytes()};
  transfer(*stream, host_arena.carver().take(DType::u8, all), table_arena_.carver().take(DType::u8, all));
  stream->synchronize();
}

}  // namespace transxssm
