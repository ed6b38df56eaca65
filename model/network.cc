#include "model/network.h"

#include <algorithm>

#include "parallel/local.h"

namespace transxssm {

Network::Network(const ModelConfig& config, const Shard& shard, const StageCut& cut, Communicator& tp,
                 int64_t positions, Communicator* group_sharers, const Precision& precision)
    : config_(config), cut_(cut), precision_(precision), store_(precision.activation) {
  auto carve_tables = [&](Carver& carver) {
    tables_.positions = RotaryTable::carve(carver, positions, config.head_dim());
    tables_.chunk = RotaryTable::carve(carver, config.chunk + 1, config.d_state);
  };
  Carver count;
  carve_tables(count);
  table_arena_ = Arena(count.used());
  Carver carver = table_arena_.carver();
  carve_tables(carver);
  if (config.attention_rope)
    tables_.positions.fill(rotary_frequencies(config, config.head_dim(), positions), rotary_factor(config));
  else
    tables_.positions.fill(std::vector<double>(static_cast<size_t>(config.head_dim() / 2)), 1);
  tables_.chunk.fill(rotary_frequencies(config, config.d_state, positions), 1);

  const Boundary boundary(tp);
  if (group_sharers == nullptr) {
    TRANSXSSM_CHECK(!config.ssd_gate || shard.groups.num_copies == 1 || tp.size() == 1,
                    "who shares a state group?");
    alone_ = single_rank();
    group_sharers = alone_.get();
  }
  const bool split_tie = config.tie_embeddings && cut.has_embedding != cut.has_head;
  if (cut.has_embedding) embedding_.emplace(config, shard, store_, boundary, split_tie);
  for (int i = 0; i < cut.num_layers; ++i)
    layers_.push_back(
        make_layer(config, shard, precision, cut.first_layer + i, store_, tables_, boundary, *group_sharers));
  if (cut.has_head) {
    const bool tied_here = config.tie_embeddings && cut.has_embedding;
    head_.emplace(config, shard, precision, store_, boundary, tp, tied_here ? embedding_->parameter() : -1);
  }
}

namespace {

// What the rotary factors of C and B come to in their product.
double scan_factor(const ModelConfig& config) {
  return config.ssd_position == SsdPosition::rope ? rotary_factor(config) * rotary_factor(config) : 1;
}

}  // namespace

TokenFacts TokenFacts::carve(Carver& carver, const ModelConfig& config, int64_t rows, int64_t tokens) {
  TokenFacts facts;
  facts.start = carver.take(DType::u8, {rows, tokens});
  facts.first_key = carver.take(DType::i32, {rows, tokens});
  if (config.log_n_scale) facts.q_scale = carver.take(DType::f32, {rows * tokens});
  if (config.log_n_scale || scan_factor(config) != 1) facts.c_scale = carver.take(DType::f32, {rows, tokens});
  return facts;
}

void TokenFacts::fill(const ModelConfig& config, const Tensor& position) const {
  const double factor = scan_factor(config);
  for (int64_t b = 0; b < position.size(0); ++b) {
    for (int64_t t = 0; t < position.size(1); ++t) {
      const int32_t p = position.at<int32_t>({b, t});
      start.at<uint8_t>({b, t}) = p == 0;
      first_key.at<int32_t>({b, t}) = static_cast<int32_t>(std::max<int64_t>(0, t - p));
      const double log_n = config.log_n_scale ? log_n_factor(config, p) : 1;
      if (q_scale) q_scale.at<float>({b * position.size(1) + t}) = static_cast<float>(log_n);
      if (c_scale) c_scale.at<float>({b, t}) = static_cast<float>(factor * log_n);
    }
  }
}

}  // namespace transxssm
