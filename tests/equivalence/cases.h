// The shapes and meshes every layout is compared on.
#pragma once

#include <cmath>
#include <vector>

#include "tests/equivalence/mesh_run.h"

namespace transxssm::equivalence {

// Hard on purpose: a vocabulary and a row length that nothing divides, KV heads and groups shared by tp
// ranks, document starts inside chunks and at their edges, another number of valid targets in every row,
// clipping active.
inline Case awkward_case() {
  return {.model =
              "vocab_size: 131 d_model: 64 num_layers: 8 num_heads: 4 num_kv_heads: 2 d_ff: 112 d_state: 16 "
              "num_groups: 2 chunk: 16 d_skip: true",
          .tokens = 45,
          .global_batch = 8,
          .documents = true,
          .clip_norm = 0.25};
}

inline Case untied_case() {
  return {.model =
              "vocab_size: 50257 d_model: 32 num_layers: 4 num_heads: 4 num_kv_heads: 1 d_ff: 48 d_state: 8 "
              "num_groups: 2 chunk: 16 attn_period: 2 attn_offset: 0 tie_embeddings: false learned_residual: "
              "false",
          .tokens = 340,
          .global_batch = 2,
          .documents = true};
}

// The other kinds and ablations, small: KV heads and groups that tp 4 shares, packed documents, awkward
// sizes.
inline std::vector<std::pair<std::string, Case>> kinds() {
  const std::string size =
      "vocab_size: 131 d_model: 32 num_heads: 4 d_state: 8 chunk: 16 num_kv_heads: 2 num_groups: 2 ";
  const std::string mamba =
      "ssd_position: 'conv1d' ssd_gate: true d_skip: true ssd_expand: 2 learned_residual: false ";
  auto test = [&](const std::string& model) {
    return Case{.model = size + model, .tokens = 37, .global_batch = 4, .documents = true, .clip_norm = 0.5};
  };
  return {{"llama", test("num_layers: 4 d_ff: 48 attn_period: 1 attn_offset: 0 learned_residual: false")},
          {"mamba2", test("num_layers: 4 d_ff: 0 layer_pattern: 'SSSS' " + mamba)},
          {"jamba", test("num_layers: 4 d_ff: 48 layer_pattern: 'SSAS' attention_rope: false " + mamba)},
          {"conv1d", test("num_layers: 4 d_ff: 48 layer_pattern: 'SSSA' ssd_position: 'conv1d' d_skip: true "
                          "attention_rope: false")},
          {"decay",
           test("num_layers: 4 d_ff: 48 layer_pattern: 'SSSA' ssd_position: 'none' attention_rope: false")},
          {"yarn", test("num_layers: 4 d_ff: 48 layer_pattern: 'SASA' rope_scaling: 'yarn' "
                        "rope_original_length: 16 log_n_scale: true")}};
}

// The preset `tiny` at 512 tokens a step.
inline Case tiny_case() {
  return {.model = "preset: 'tiny'", .tokens = 64, .global_batch = 8};
}

inline std::vector<MeshCase> meshes() {
  auto mesh = [](int pp, int dp, int tp, const char* pipeline = "1f1b", int64_t microbatch = 1) {
    return MeshCase{{.pp = pp, .dp = dp, .cp = 1, .tp = tp}, pipeline, microbatch};
  };
  return {
      mesh(1, 1, 2),          mesh(1, 1, 4), mesh(2, 1, 1), mesh(2, 1, 1, "gpipe"), mesh(4, 1, 1, "1f1b", 2),
      mesh(4, 1, 1, "gpipe"), mesh(1, 2, 1), mesh(1, 4, 1), mesh(2, 1, 2),          mesh(1, 2, 2, "1f1b", 2),
      mesh(2, 2, 1),          mesh(2, 2, 2)};
}

inline bool is_sensitive(const std::string& parameter) {
  return parameter.ends_with("A_log") || parameter.ends_with("dt_bias");
}

// ||a - b|| / ||b||.
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// What differs by more than the bounds, as one line each: loss and norm 1e-5 at every step, gradients of step
// 1 1e-5 of the tensor's norm (A_log, dt_bias 1e-4), initial weights to the bit, the parameter count.
inline std::vector<std::string> differences(const RunResult& mesh, const RunResult& one) {
  std::vector<std::string> found;
  auto check = [&](bool good, std::string what) {
    if (!good) found.push_back(std::move(what));
  };
  for (size_t s = 0; s < one.loss.size(); ++s) {
    check(std::abs(mesh.loss[s] / one.loss[s] - 1) <= 1e-5,
          fmt::format("step {}: loss {} instead of {}", s + 1, mesh.loss[s], one.loss[s]));
    check(std::abs(mesh.gradient_norm[s] / one.gradient_norm[s] - 1) <= 1e-5,
          fmt::format("step {}: gradient norm {} instead of {}", s + 1, mesh.gradient_norm[s],
                      one.gradient_norm[s]));
  }
  for (const auto& [name, gradient] : one.gradients) {
    const double difference = relative_difference(mesh.gradients.at(name), gradient);
    check(difference <= (is_sensitive(name) ? 1e-4 : 1e-5),
          fmt::format("gradient of {}: off by {}", name, difference));
  }
  for (const auto& [name, weight] : one.initial_weights)
    check(mesh.initial_weights.at(name) == weight, "initial weights of " + name + " differ");
  check(mesh.num_parameters == one.num_parameters,
        fmt::format("{} parameters instead of {}", mesh.num_parameters, one.num_parameters));
  return found;
}

}  // namespace transxssm::equivalence
