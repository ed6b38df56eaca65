// The unified rotary position embedding: the frequencies theta_j = base^(-2j/d) of q,k (d = P) and C,B (d =
// N) under each scaling for long context, and tables of their cos and sin.
#pragma once

#include <span>
#include <vector>

#include "model/config.h"
#include "runtime/arena.h"

namespace transxssm {

// The width/2 angles of one position, by the rule of config.rope_scaling for that width: linear
// interpolation; dynamic NTK, whose base grows with `num_tokens`, the length of the row (no other scaling
// reads it); YaRN (arXiv 2309.00071) with beta_fast 32 and beta_slow 1; the scaling of Llama 3.1 (llama3).
std::vector<double> rotary_frequencies(const ModelConfig& config, int64_t width, int64_t num_tokens);

// What multiplies cos and sin of q, k, C and B: YaRN's attention factor 0.1 ln(factor) + 1, else 1. A state's
// rotation is never scaled.
double rotary_factor(const ModelConfig& config);

// The log-n scale of q and C at a position inside its document: max(1, log(position + 1) / log(base length)).
double log_n_factor(const ModelConfig& config, int64_t position);

struct RotaryTable {
  Tensor cos;  // [positions, width/2] f32
  Tensor sin;  // [positions, width/2] f32

  static RotaryTable carve(Carver& carver, int64_t positions, int64_t width);
  // cos and sin of position * frequency, times `factor`; formed in f64.
  void fill(std::span<const double> frequencies, double factor) const;
};

}  // namespace transxssm
