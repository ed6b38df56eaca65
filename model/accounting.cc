#include "model/accounting.h"

#include "parallel/local.h"
#include "parallel/schedule.h"

namespace transxssm {
namespace {

// FLOPs of one layer for a token; the two sub-layers together.
double layer_flops(const ModelConfig& c, int64_t layer, int64_t tokens) {
  const double d = static_cast<double>(c.d_model), p = static_cast<double>(c.head_width());
  const double mlp = 6 * 3 * d * static_cast<double>(c.d_ff);
  if (c.is_attention(layer)) {
    const double h = static_cast<double>(c.num_heads), kv = static_cast<double>(c.kv_heads());
    const double matrices = d * p * (2 * h + 2 * kv);
    return mlp + 6 * matrices + 6 * static_cast<double>(tokens) * h * p;
  }
  const double h = static_cast<double>(c.ssd_heads()), n = static_cast<double>(c.d_state);
  const double inner = h * p, group_states = static_cast<double>(c.groups()) * n;
  const double in_and_out = inner * (c.ssd_gate ? 3 : 2);  // x, y, and the gate z
  const double matrices = d * (2 * group_states + in_and_out + h);
  const double channels = c.ssd_position == SsdPosition::conv1d ? inner + 2 * group_states : 0;
  return mlp + 6 * matrices + 12 * h * n * p + 6 * channels * static_cast<double>(c.conv_kernel);
}

double head_flops(const ModelConfig& c) {
  return 6.0 * static_cast<double>(c.vocab_size) * static_cast<double>(c.d_model);
}

double cut_flops(const ModelConfig& config, const StageCut& cut, int64_t tokens) {
  double flops = cut.has_head ? head_flops(config) : 0;
  for (int i = 0; i < cut.num_layers; ++i) flops += layer_flops(config, cut.first_layer + i, tokens);
  return flops;
}

}  // namespace

int64_t num_parameters(const ModelConfig& config) {
  const auto alone = single_rank();
  const StageCut whole{.first_layer = 0, .num_layers = static_cast<int>(config.num_layers)};
  return Network(config, Shard::of(config, 1, 0), whole, *alone, 1).parameters().num_elements();
}

double flops_per_token(const ModelConfig& config, int64_t tokens) {
  return cut_flops(config, {.first_layer = 0, .num_layers = static_cast<int>(config.num_layers)}, tokens);
}

std::vector<StageCut> cut_layers(const ModelConfig& config, int64_t tokens, int pp) {
  std::vector<double> costs;
  for (int64_t i = 0; i < config.num_layers; ++i) costs.push_back(layer_flops(config, i, tokens));
  costs.back() += head_flops(config);
  const std::vector<int> bounds = cut_stages(costs, pp);
  std::vector<StageCut> cuts;
  for (int s = 0; s < pp; ++s) {
    const auto i = static_cast<size_t>(s);
    cuts.push_back({.first_layer = bounds[i],
                    .num_layers = bounds[i + 1] - bounds[i],
                    .has_embedding = s == 0,
                    .has_head = s == pp - 1});
  }
  return cuts;
}

std::string layer_pattern(const ModelConfig& config, const StageCut& cut) {
  std::string pattern;
  for (int i = 0; i < cut.num_layers; ++i) pattern += config.is_attention(cut.first_layer + i) ? 'A' : 'S';
  return pattern;
}

double stage_cost_fraction(const ModelConfig& config, const StageCut& cut, int64_t tokens) {
  return cut_flops(config, cut, tokens) / flops_per_token(config, tokens);
}

}  // namespace transxssm
