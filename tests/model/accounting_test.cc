// Parameter counts of the presets to the last one, operations of a token, pipeline cuts.
#include "model/accounting.h"

#include <gtest/gtest.h>

#include <vector>

namespace transxssm {
namespace {

// Parameters written out from the definition of the network, not from its code.
struct Shape {
  int64_t v, d, layers, attention, heads, kv, p, f, n = 0, g = 0;
  bool learned = false;
  bool mamba = false;  // expand 2, convolution of 4 with bias, gate with its norm, D skip
};

int64_t count_by_hand(const Shape& s) {
  const int64_t attention = s.d * s.p * 2 * (s.heads + s.kv);  // q and o, k and v
  const int64_t h = s.mamba ? 2 * s.heads : s.heads, inner = h * s.p;
  int64_t ssd = s.d * inner * 2 + s.d * 2 * s.g * s.n + s.d * h + 2 * h;  // x, o; B, C; dt; A_log, dt_bias
  if (s.mamba) ssd += s.d * inner + inner + h + (inner + 2 * s.g * s.n) * (4 + 1);
  const int64_t sub_layers = s.f > 0 ? 2 : 1;
  const int64_t around = 3 * s.d * s.f + sub_layers * s.d * (s.learned ? 2 : 1);
  return s.v * s.d + s.d + s.layers * around + s.attention * attention + (s.layers - s.attention) * ssd;
}

struct Expected {
  const char* preset;
  Shape shape;
  double millions;  // what the preset is meant to have
  double within;    // of it, a fraction
};

const std::vector<Expected>& expected_of_presets() {
  // {V, D, layers, of these attention, heads, KV, P, F, N, G, learned residual, mamba}
  static const std::vector<Expected> table = {
      {"tiny", {8192, 256, 8, 1, 4, 4, 64, 704, 64, 4, true}, 8.5, 0.005},
      {"transxssm-320m", {50304, 768, 24, 3, 12, 12, 64, 3584, 128, 12, true}, 318.5, 0.0002},
      {"transxssm-1.3b", {50304, 2048, 24, 3, 32, 32, 64, 4224, 128, 32, true}, 1306, 0.0005},
      {"transxssm-7b", {50304, 4096, 32, 4, 32, 32, 128, 11008, 128, 32, true}, 6686, 0.0001},
      {"transxssm-13b", {50304, 5120, 40, 5, 40, 40, 128, 13824, 128, 40, true}, 12953, 0.0001},
      {"llama-320m", {50304, 768, 24, 24, 12, 12, 64, 4096}, 321.8, 0.0002},
      {"llama-1.3b", {50304, 2048, 24, 24, 32, 32, 64, 5376}, 1298, 0.0005},
      {"mamba2-320m", {50304, 768, 74, 0, 12, 12, 64, 0, 128, 1, false, true}, 318.5, 0.01},
      {"mamba2-1.3b", {50304, 2048, 46, 0, 32, 32, 64, 0, 128, 1, false, true}, 1306, 0.015},
      {"jamba-320m", {50304, 768, 24, 3, 12, 12, 64, 2944, 128, 8, false, true}, 318.5, 0.01},
      {"jamba-1.3b", {50304, 2048, 24, 3, 32, 32, 64, 3584, 128, 8, false, true}, 1306, 0.01},
  };
  return table;
}

TEST(Parameters, OfThePresets) {
  EXPECT_EQ(expected_of_presets().size(), model_preset_names().size());
  for (const Expected& expected : expected_of_presets()) {
    const int64_t count = num_parameters(model_preset(expected.preset));
    EXPECT_EQ(count, count_by_hand(expected.shape)) << expected.preset;
    EXPECT_NEAR(static_cast<double>(count) * 1e-6, expected.millions, expected.within * expected.millions)
        << expected.preset;
  }
}

TEST(Parameters, SwitchesAddWhatTheySay) {
  // D 256, 8 layers of which 7 state-space, 4 heads of 64, N 64, 4 groups, F 704.
  const ModelConfig tiny = model_preset("tiny");
  const int64_t base = num_parameters(tiny);
  const auto change = [&](auto&& edit) {
    ModelConfig config = tiny;
    edit(config);
    EXPECT_TRUE(problems(config).empty());
    return num_parameters(config) - base;
  };
  EXPECT_EQ(change([](ModelConfig& c) { c.tie_embeddings = false; }), 8192 * 256);
  EXPECT_EQ(change([](ModelConfig& c) { c.d_skip = true; }), 7 * 4);
  EXPECT_EQ(change([](ModelConfig& c) { c.learned_residual = false; }), -8 * 2 * 256);
  EXPECT_EQ(change([](ModelConfig& c) { c.num_groups = 1; }), -7 * 2 * 3 * 64 * 256);
  EXPECT_EQ(change([](ModelConfig& c) { c.num_kv_heads = 1; }), -2 * 3 * 64 * 256);
  // Positions: rotation has no parameters, a convolution has a kernel and a bias a channel of X, B and C.
  EXPECT_EQ(change([](ModelConfig& c) { c.ssd_position = SsdPosition::none; }), 0);
  EXPECT_EQ(change([](ModelConfig& c) { c.attention_rope = false; }), 0);
  EXPECT_EQ(change([](ModelConfig& c) { c.rope_scaling = RopeScaling::yarn; }), 0);
  EXPECT_EQ(change([](ModelConfig& c) { c.ssd_position = SsdPosition::conv1d; }), 7 * 768 * (4 + 1));
  EXPECT_EQ(change([](ModelConfig& c) {
              c.ssd_position = SsdPosition::conv1d;
              c.conv_kernel = 2;
              c.num_groups = 2;
            }),
            7 * ((256 + 2 * 128) * (2 + 1) - 2 * 2 * 64 * 256));
  // Per state-space layer: z and the weight of its norm; x, o, dt, A_log and dt_bias of four more heads.
  EXPECT_EQ(change([](ModelConfig& c) { c.ssd_gate = true; }), 7 * (256 * 256 + 256));
  EXPECT_EQ(change([](ModelConfig& c) { c.ssd_expand = 2; }), 7 * (2 * 256 * 256 + 4 * 256 + 2 * 4));
  // Without FFN its matrices, the norm before it and the weights of its residual are gone.
  EXPECT_EQ(change([](ModelConfig& c) { c.d_ff = 0; }), -8 * (3 * 256 * 704 + 2 * 256));
  // A second attention layer in place of a state-space one.
  EXPECT_EQ(change([](ModelConfig& c) { c.layer_pattern = "SSSASSSA"; }),
            4 * 256 * 256 - (4 * 256 * 256 + 4 * 256 + 2 * 4));
}

TEST(Operations, OfAToken) {
  const ModelConfig c = model_preset("tiny");
  // Every matrix but the lookup, then attention (6 T H P) and state (12 H N P).
  const double matrices = 6.0 * static_cast<double>(num_parameters(c) - 256 - 8 * 4 * 256 - 7 * 2 * 4);
  EXPECT_DOUBLE_EQ(flops_per_token(c, 512), matrices + 6.0 * 512 * 256 + 7 * 12.0 * 4 * 64 * 64);
}

TEST(Operations, OfATokenInTheBaselines) {
  // mamba2: 74 layers of z, x, o of 1536 channels, B and C of 128, 24 heads; the head; no FFN.
  const double mixer = 768.0 * (3 * 1536 + 2 * 128 + 24);
  const double scan = 12.0 * 24 * 128 * 64, convolution = 6.0 * 4 * (1536 + 2 * 128);
  const double head = 6.0 * 50304 * 768;
  EXPECT_DOUBLE_EQ(flops_per_token(model_preset("mamba2-320m"), 2048),
                   head + 74 * (6 * mixer + scan + convolution));
  // jamba: 21 such layers with 8 groups, 3 of attention, all with FFN of 2944.
  const double grouped = 768.0 * (3 * 1536 + 2 * 8 * 128 + 24);
  const double wide_convolution = 6.0 * 4 * (1536 + 2 * 8 * 128);
  const double attention = 6 * 4.0 * 768 * 768 + 6.0 * 2048 * 768;
  EXPECT_DOUBLE_EQ(
      flops_per_token(model_preset("jamba-320m"), 2048),
      head + 24 * 6 * 3.0 * 768 * 2944 + 3 * attention + 21 * (6 * grouped + scan + wide_convolution));
  // The kernel counts only where there is a convolution.
  ModelConfig decay = model_preset("tiny");
  decay.ssd_position = SsdPosition::none;
  EXPECT_DOUBLE_EQ(flops_per_token(decay, 512), flops_per_token(model_preset("tiny"), 512));
}

TEST(PipelineCut, CoversTheLayersAndWeighsTheHead) {
  const ModelConfig config = model_preset("tiny");
  for (int pp : {1, 2, 3, 4, 8}) {
    const auto cuts = cut_layers(config, 512, pp);
    ASSERT_EQ(cuts.size(), static_cast<size_t>(pp));
    int next = 0;
    double cost = 0;
    for (const StageCut& cut : cuts) {
      EXPECT_EQ(cut.first_layer, next);
      EXPECT_GE(cut.num_layers, 1);
      next += cut.num_layers;
      cost += stage_cost_fraction(config, cut, 512);
    }
    EXPECT_EQ(next, 8);
    EXPECT_NEAR(cost, 1, 1e-12);
    EXPECT_TRUE(cuts.front().has_embedding && cuts.back().has_head);
  }
  // The head costs as much as three layers: the last of two stages has fewer.
  EXPECT_LT(cut_layers(config, 512, 2).back().num_layers, 4);
}

}  // namespace
}  // namespace transxssm
