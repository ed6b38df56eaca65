#include "model/rotary_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace transxssm {
namespace {

std::vector<double> powers_of(double base, int64_t width) {
  std::vector<double> frequencies(static_cast<size_t>(width / 2));
  for (size_t j = 0; j < frequencies.size(); ++j)
    frequencies[j] = std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(width));
  return frequencies;
}

// Pairs that turn often within the original length keep their frequency, those that turn less than once are
// interpolated, with a linear ramp between.
void scale_yarn(std::vector<double>& frequencies, const ModelConfig& config, int64_t width) {
  constexpr double kFastTurns = 32, kSlowTurns = 1;
  // The pair (a fraction) that makes `turns` turns within the original length.
  const auto pair_of = [&](double turns) {
    return static_cast<double>(width) *
           std::log(static_cast<double>(config.rope_original_length) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(config.rope_base));
  };
  const double low = std::max(std::floor(pair_of(kFastTurns)), 0.0);
  const double high = std::min(std::ceil(pair_of(kSlowTurns)), static_cast<double>(width - 1));
  // A ramp without length would divide by zero.
  const double length = high == low ? 0.001 : high - low;
  for (size_t j = 0; j < frequencies.size(); ++j) {
    const double interpolated = std::clamp((static_cast<double>(j) - low) / length, 0.0, 1.0);
    frequencies[j] *= interpolated / config.rope_scaling_factor + (1 - interpolated);
  }
}

// Pairs whose wave is shorter than original/high keep their frequency, those longer than original/low are
// interpolated; between them the two are blended, linearly in the turns within the original length.
void scale_llama3(std::vector<double>& frequencies, const ModelConfig& config) {
  const double low = config.rope_low_freq_factor, high = config.rope_high_freq_factor;
  for (double& frequency : frequencies) {
    const double turns =
        static_cast<double>(config.rope_original_length) * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    frequency *= (1 - kept) / config.rope_scaling_factor + kept;
  }
}

}  // namespace

std::vector<double> rotary_frequencies(const ModelConfig& config, int64_t width, int64_t num_tokens) {
  const double factor = config.rope_scaling_factor;
  double base = config.rope_base;
  if (config.rope_scaling == RopeScaling::dynamic) {
    const double original = static_cast<double>(config.rope_original_length);
    const double length = std::max(static_cast<double>(num_tokens), original);
    base *= std::pow(factor * length / original - (factor - 1),
                     static_cast<double>(width) / static_cast<double>(width - 2));
  }
  std::vector<double> frequencies = powers_of(base, width);
  if (config.rope_scaling == RopeScaling::linear)
    for (double& frequency : frequencies) frequency /= factor;
  if (config.rope_scaling == RopeScaling::yarn) scale_yarn(frequencies, config, width);
  if (config.rope_scaling == RopeScaling::llama3) scale_llama3(frequencies, config);
  return frequencies;
}

double rotary_factor(const ModelConfig& config) {
  return config.rope_scaling == RopeScaling::yarn ? 0.1 * std::log(config.rope_scaling_factor) + 1 : 1;
}

double log_n_factor(const ModelConfig& config, int64_t position) {
  return std::max(
      1.0, std::log(static_cast<double>(position + 1)) / std::log(static_cast<double>(config.log_n_base())));
}

RotaryTable RotaryTable::carve(Carver& carver, int64_t positions, int64_t width) {
  const Tensor cos = carver.take(DType::f32, {positions, width / 2});
  return {cos, carver.take(DType::f32, {positions, width / 2})};
}

void RotaryTable::fill(std::span<const double> frequencies, double factor) const {
  const size_t half = frequencies.size();
  TRANSXSSM_CHECK(cos.size(1) == static_cast<int64_t>(half), "{} frequencies for a table of {}", half,
                  cos.size(1));
  // Angles inside a block of positions are the same for all blocks: one sine a block instead of one an
  // element, by cos(a + b) = cos a cos b - sin a sin b.
  constexpr int64_t kBlock = 64;
  const int64_t positions = cos.size(0), inside = std::min(kBlock, positions);
  std::vector<double> cos_inside(static_cast<size_t>(inside) * half), sin_inside(cos_inside.size());
  for (int64_t i = 0; i < inside; ++i)
    for (size_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(i) * frequencies[j];
      cos_inside[static_cast<size_t>(i) * half + j] = std::cos(angle);
      sin_inside[static_cast<size_t>(i) * half + j] = std::sin(angle);
    }
  std::vector<double> cos_first(half), sin_first(half);
  for (int64_t first = 0; first < positions; first += kBlock) {
    for (size_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(first) * frequencies[j];
      cos_first[j] = factor * std::cos(angle);
      sin_first[j] = factor * std::sin(angle);
    }
    for (int64_t i = first; i < std::min(first + kBlock, positions); ++i) {
      const double* c = cos_inside.data() + static_cast<size_t>(i - first) * half;
      const double* s = sin_inside.data() + static_cast<size_t>(i - first) * half;
      float* cos_row = cos.data<float>() + i * cos.stride(0);
      float* sin_row = sin.data<float>() + i * sin.stride(0);
      for (size_t j = 0; j < half; ++j) {
        cos_row[j] = static_cast<float>(cos_first[j] * c[j] - sin_first[j] * s[j]);
        sin_row[j] = static_cast<float>(sin_first[j] * c[j] + cos_first[j] * s[j]);
      }
    }
  }
}

}  // namespace transxssm
