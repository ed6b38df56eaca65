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
  Network(const ModelConfig& config, const Shard& shard, const StageCut& cut, Communicator& tp,
          int64_t positions);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const ModelConfig& config() const { return config_; }
  const StageCut& cut() const { return cut_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  const Embedding* embedding() const { return embedding_ ? &*embedding_ : nullptr; }
  const Head* head() const { return head_ ? &*head_ : nullptr; }
  const std::vector<std::unique_ptr<Block>>& layers() const { return layers_; }
  int64_t positions() const { return tables_.positions.cos.size(0); }
  int64_t table_bytes() const { return table_arena_.bytes(); }

 private:
  ModelConfig config_;
  StageCut cut_;
  ParameterStore store_;
  Arena table_arena_;
  LayerTables tables_;
  std::optional<Embedding> embedding_;
  std::vector<std::unique_ptr<Block>> layers_;
  std::optional<Head> head_;
};

// Facts of the rows of a microbatch, derived from positions: `start` [B,T] u8 marks the first token of each
// document, `first_key` [B,T] i32 the first token of the row that each may attend to. position [B,T] i32.
void mark_documents(const Tensor& position, const Tensor& start, const Tensor& first_key);

}  // namespace transxssm
