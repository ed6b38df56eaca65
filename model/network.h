// The part of the network that one pipeline stage of one tensor-parallel rank holds: embedding (first stage),
// a run of layers, final norm and head (last stage), and their parameters.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "model/blocks.h"
#include "model/embedding.h"
#include "model/head.h"

namespace transxssm {

// Where the network is cut.
struct StageCut {
  int first_layer = 0;
  int num_layers = 0;
  bool has_embedding = true;
  bool has_head = true;
};

class Network {
 public:
  // Declares parameters; allocates nothing but the rotation tables, for `positions` positions.
  // `group_sharers`: the tp ranks that hold copies of one state group (Mesh::tp_share); needed where tp cuts
  // groups of a gated model, else null. Dynamic rotary scaling takes `positions` as the length of the row.
  // `stream`: of the device that computes; null: the CPU.
  Network(const ModelConfig& config, const Shard& shard, const StageCut& cut, Communicator& tp,
          int64_t positions, Communicator* group_sharers = nullptr, const Precision& precision = {},
          Stream* stream = nullptr);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const ModelConfig& config() const { return config_; }
  const StageCut& cut() const { return cut_; }
  const Precision& precision() const { return precision_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  const Embedding* embedding() const { return embedding_ ? &*embedding_ : nullptr; }
  const Head* head() const { return head_ ? &*head_ : nullptr; }
  const std::vector<std::unique_ptr<Block>>& layers() const { return layers_; }
  // First element, in the flat arrays, of the matrices that layer `i` of this stage and all after it declare.
  int64_t first_matrix(size_t i) const;
  int64_t positions() const { return tables_.positions.cos.size(0); }
  int64_t table_bytes() const { return table_arena_.bytes(); }

 private:
  void make_tables(int64_t positions, Stream* stream);

  ModelConfig config_;
  StageCut cut_;
  Precision precision_;
  ParameterStore store_;
  std::unique_ptr<Communicator> alone_;
  Arena table_arena_;
  LayerTables tables_;
  std::optional<Embedding> embedding_;
  std::vector<std::unique_ptr<Block>> layers_;
  std::vector<size_t> first_parameter_;  // of each layer, in the order of declaration
  std::optional<Head> head_;
};

}  // namespace transxssm
