// Frequencies of every scaling from its definition, tables against cos and sin of each angle.
#include "model/rotary_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace transxssm {
namespace {

ModelConfig scaled(RopeScaling scaling, int64_t original = 512) {
  ModelConfig config = model_preset("tiny");
  config.rope_scaling = scaling;
  config.rope_scaling_factor = 4;
  config.rope_original_length = original;
  return config;
}

// theta_j of base 10000.
double plain(size_t j, int64_t width) {
  return std::exp(-2.0 * static_cast<double>(j) / static_cast<double>(width) * std::log(10000.0));
}

void expect_ratios(RopeScaling scaling, int64_t width, int64_t original, int64_t tokens, auto&& ratio) {
  const auto frequencies = rotary_frequencies(scaled(scaling, original), width, tokens);
  ASSERT_EQ(frequencies.size(), static_cast<size_t>(width / 2));
  for (size_t j = 0; j < frequencies.size(); ++j)
    EXPECT_NEAR(frequencies[j] / plain(j, width), ratio(static_cast<double>(j)), 1e-12)
        << "width " << width << " pair " << j;
}

TEST(RotaryFrequencies, NoneAndLinear) {
  for (int64_t width : {8, 64, 128})
    for (int64_t tokens : {1, 512, 4096}) {
      expect_ratios(RopeScaling::none, width, 512, tokens, [](double) { return 1.0; });
      expect_ratios(RopeScaling::linear, width, 512, tokens, [](double) { return 0.25; });
    }
}

// The base grows so that the slowest pair is interpolated by 4 n / original - 3 and the fastest not at all.
TEST(RotaryFrequencies, DynamicFollowsTheRow) {
  for (int64_t width : {8, 64, 128}) {
    for (int64_t tokens : {1, 511, 512})
      expect_ratios(RopeScaling::dynamic, width, 512, tokens, [](double) { return 1.0; });
    const double slowest = static_cast<double>(width / 2 - 1);
    expect_ratios(RopeScaling::dynamic, width, 512, 1536,
                  [&](double j) { return std::pow(9.0, -j / slowest); });
    expect_ratios(RopeScaling::dynamic, width, 512, 640,
                  [&](double j) { return std::pow(2.0, -j / slowest); });
  }
}

TEST(RotaryFrequencies, YarnRampsBetweenThePairsOf32AndOf1Turn) {
  const auto ramp = [](double low, double high) {
    return [=](double j) { return 1 - 0.75 * std::min(std::max((j - low) / (high - low), 0.0), 1.0); };
  };
  // Pair j turns 512 theta_j / 2 pi times: width 64: 32 times at j = 3.25, once at 15.29; width 128 at 6.49
  // and 30.58.
  for (int64_t tokens : {1, 1536}) {
    expect_ratios(RopeScaling::yarn, 64, 512, tokens, ramp(3, 16));
    expect_ratios(RopeScaling::yarn, 128, 512, tokens, ramp(6, 31));
  }
  // Within 16 tokens none turns 32 times; once at 3.25. Within 6 none turns once: a ramp
  // without length, all but the first are interpolated.
  expect_ratios(RopeScaling::yarn, 64, 16, 48, ramp(0, 4));
  expect_ratios(RopeScaling::yarn, 8, 6, 48, [](double j) { return j == 0 ? 1.0 : 0.25; });
}

// Pairs that turn less than once within the original length are interpolated, those that turn more than 4
// times are not.
TEST(RotaryFrequencies, Llama3BlendsByTurns) {
  for (int64_t width : {8, 64, 128})
    for (int64_t tokens : {1, 4096})
      expect_ratios(RopeScaling::llama3, width, 512, tokens, [&](double j) {
        const double turns = 512 * plain(static_cast<size_t>(j), width) / (2 * std::acos(-1.0));
        if (turns < 1) return 0.25;
        return turns > 4 ? 1.0 : 0.25 + 0.75 * (turns - 1) / 3;
      });
  // Llama 3.1's own numbers, every eighth pair: base 500000, factor 8, from 8192 positions, 64 pairs.
  ModelConfig llama = scaled(RopeScaling::llama3, 8192);
  llama.rope_base = 500000;
  llama.rope_scaling_factor = 8;
  const auto frequencies = rotary_frequencies(llama, 128, 8192);
  const double expected[] = {1,
                             0.1939227447,
                             0.03760603093,
                             0.007292664737,
                             0.000524846161,
                             3.428102196e-05,
                             6.647869871e-06,
                             1.289173172e-06};
  for (size_t i = 0; i < std::size(expected); ++i)
    EXPECT_NEAR(frequencies[8 * i] / expected[i], 1, 1e-6) << i;
}

TEST(RotaryFrequencies, FactorIsOfYarnAlone) {
  for (RopeScaling scaling :
       {RopeScaling::none, RopeScaling::linear, RopeScaling::dynamic, RopeScaling::llama3})
    EXPECT_EQ(rotary_factor(scaled(scaling)), 1);
  EXPECT_NEAR(rotary_factor(scaled(RopeScaling::yarn)), 1.1386294361119891, 1e-15);
}

TEST(RotaryFrequencies, LogNGrowsFromTheBaseLength) {
  ModelConfig config = scaled(RopeScaling::yarn, 16);
  EXPECT_EQ(log_n_factor(config, 0), 1);
  EXPECT_EQ(log_n_factor(config, 15), 1);
  EXPECT_NEAR(log_n_factor(config, 16), 1.0218657103125849, 1e-15);  // log 17 / log 16
  EXPECT_NEAR(log_n_factor(config, 255), 2, 1e-15);
  config.rope_scaling = RopeScaling::none;
  config.max_position_embeddings = 64;
  EXPECT_EQ(log_n_factor(config, 63), 1);
  EXPECT_NEAR(log_n_factor(config, 4095), 2, 1e-15);
}

TEST(RotaryTable, HoldsCosAndSinOfEveryAngle) {
  const int64_t width = 16;
  const auto frequencies = rotary_frequencies(scaled(RopeScaling::linear), width, 1);
  for (int64_t positions : {1, 63, 65, 20000}) {
    Carver count;
    RotaryTable::carve(count, positions, width);
    const Arena arena(count.used());
    Carver carver = arena.carver();
    const RotaryTable table = RotaryTable::carve(carver, positions, width);
    for (double factor : {1.0, 1.5}) {
      table.fill(frequencies, factor);
      double worst = 0;
      for (int64_t i = 0; i < positions; ++i)
        for (int64_t j = 0; j < width / 2; ++j) {
          const double angle = static_cast<double>(i) * frequencies[static_cast<size_t>(j)];
          worst = std::max(worst, std::abs(table.cos.at<float>({i, j}) - factor * std::cos(angle)));
          worst = std::max(worst, std::abs(table.sin.at<float>({i, j}) - factor * std::sin(angle)));
        }
      EXPECT_LT(worst, 6.1e-8 * factor) << positions;  // half a unit in the last place of f32
    }
  }
}

}  // namespace
}  // namespace transxssm
