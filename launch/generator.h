// Text generation from a checkpoint on any mesh of pp x tp ranks: prefill, then one token at a time with
// caches.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

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
  // Collective. Builds the network for prompts and answers of up to `max_tokens` together; weights are not
  // loaded.
  Generator(const ModelConfig& config, const MeshShape& shape, Communicator& world, Stream& stream,
            int64_t max_tokens);

  Network& network() { return network_; }

  // Feeds `tokens` and returns the logits [V] of the token that follows, the same on every rank. Collective.
  std::span<const float> next_logits(std::span<const int32_t> tokens);

  // Continues `prompt` until `count` tokens are drawn or on_token returns false. on_token runs on every rank.
  void generate(std::span<const int32_t> prompt, int64_t count, const SamplingOptions& options,
                const std::function<bool(int32_t)>& on_token);

 private:
  Stream& stream_;
  Mesh mesh_;
  Network network_;
  std::unique_ptr<DecodingWork> work_;
  std::unique_ptr<Pipeline> single_token_;
  std::vector<float> logits_;
};

}  // namespace transxssm
