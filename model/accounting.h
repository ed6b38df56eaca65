// What a model costs: parameters, operations and memory, and the pipeline cut that follows.
#pragma once

#include <string>
#include <vector>

#include "model/network.h"

namespace transxssm {

// Exact number of logical parameters.
int64_t num_parameters(const ModelConfig& config);

// Model FLOPs of one token, forward and backward, in a row of T tokens: 6 x elements of the matrices that
// multiply activations (the head once, the lookup not), 6 T H P an attention layer (causal half), 12 H N P a
// state-space layer with its own H (what enters and leaves the state), 6 x kernel a channel of a convolution.
// The only formula used for FLOP/s and MFU.
double flops_per_token(const ModelConfig& config, int64_t tokens);

// The layers of each of `pp` stages, cut so that the costliest stage is cheapest; costs are FLOPs with the
// head's.
std::vector<StageCut> cut_layers(const ModelConfig& config, int64_t tokens, int pp);
// "SSSSSSSA": one letter a layer.
std::string layer_pattern(const ModelConfig& config, const StageCut& cut);
// Share of all FLOPs that falls on a stage.
double stage_cost_fraction(const ModelConfig& config, const StageCut& cut, int64_t tokens);

}  // namespace transxssm
