// Text generation from a checkpoint on any mesh of pp x tp ranks: prefill, then one token at a time with
// caches.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/accounting.h"
#include "model/decoding.h"
#include "parallel/mesh.h"

namespace transxssm {

struct SamplingOptions {
  double temperature = 1;  // 0: the likeliest token
  double top_p = 1;        // the smallest set of likeliest tokens whose probabilities reach this
  uint64_t seed = 0;
};

// Draws a token. `draw` numbers the draws of one seed.
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t draw);

class Generator {
 public:
  // Collective. Builds the network for `rows` texts at once, of up to `max_tokens` each, prompt and answer
  // together; weights are not loaded.
  Generator(const ModelConfig& config, const MeshShape& shape, Communicator& world, Stream& stream,
            int64_t rows, int64_t max_tokens, const Precision& precision = {});

  Network& network() { return network_; }
  // The master weights, to be loaded; then weights_were_loaded().
  std::vector<CheckpointTensor> checkpoint_tensors();
  void weights_were_loaded() { network_.parameters().refresh_operands(stream_); }

  // Feeds each row of ids [B,T] to rows first_row .. and returns the logits [B,V] of the tokens that follow,
  // the same on every rank. Collective.
  Tensor next_logits(const Tensor& ids, int64_t first_row = 0);

  // Continues all prompts together, each by up to `count` tokens; a row ends where on_token, which runs on
  // every rank, returns false.
  void generate(std::span<const std::vector<int32_t>> prompts, int64_t count, const SamplingOptions& options,
                const std::function<bool(int64_t row, int32_t token)>& on_token);

 private:
  Stream& stream_;
  Mesh mesh_;
  int64_t rows_;
  Network network_;
  std::unique_ptr<DecodingWork> work_;
  std::unique_ptr<Pipeline> one_token_each_;
  std::vector<float> logits_;  // [B,V], on the host
};

}  // namespace transxssm
