// Parameter counts of the presets to the last one, operations of a token, pipeline cuts.
#include "model/accounting.h"

#include <gtest/gtest.h>

namespace transxssm {
namespace {

// Written out from the definition of the network, not from its code.
int64_t count_by_hand(int64_t d, int64_t layers, int64_t attention, int64_t n, int64_t f, int64_t v,
                      bool learned) {
  const int64_t h = d / 64;
  const int64_t attention_mixer = 4 * d * d;
  const int64_t ssd_mixer = 2 * h * n * d + d * d + h * d + 2 * h + d * d;
  const int64_t per_layer = 3 * d * f + (learned ? 4 : 2) * d;
  return v * d + d + layers * per_layer + attention * attention_mixer + (layers - attention) * ssd_mixer;
}

TEST(Parameters, OfThePresets) {
  EXPECT_EQ(num_parameters(model_preset("transxssm-320m")),
            count_by_hand(768, 24, 3, 128, 3584, 50304, true));
  EXPECT_EQ(num_parameters(model_preset("transxssm-1.3b")),
            count_by_hand(2048, 24, 3, 128, 4224, 50304, true));
  EXPECT_EQ(num_parameters(model_preset("llama-320m")), count_by_hand(768, 24, 24, 0, 4096, 50304, false));
  EXPECT_EQ(num_parameters(model_preset("llama-1.3b")), count_by_hand(2048, 24, 24, 0, 5376, 50304, false));
  EXPECT_EQ(num_parameters(model_preset("tiny")), count_by_hand(256, 8, 1, 64, 704, 8192, true));
  EXPECT_NEAR(static_cast<double>(num_parameters(model_preset("transxssm-320m"))), 318.5e6, 0.5e5);
  EXPECT_NEAR(static_cast<double>(num_parameters(model_preset("transxssm-1.3b"))), 1306e6, 0.5e6);
}

TEST(Parameters, OptionsAddWhatTheySay) {
  ModelConfig config = model_preset("tiny");
  const int64_t base = num_parameters(config);
  config.tie_embeddings = false;
  EXPECT_EQ(num_parameters(config), base + 8192 * 256);
  config.tie_embeddings = true;
  config.d_skip = true;
  EXPECT_EQ(num_parameters(config), base + 7 * 4);
  config.d_skip = false;
  config.learned_residual = false;
  EXPECT_EQ(num_parameters(config), base - 8 * 2 * 256);
  config.learned_residual = true;
  config.num_groups = 1;
  EXPECT_EQ(num_parameters(config), base - 7 * 2 * 3 * 64 * 256);
}

TEST(Operations, OfAToken) {
  const ModelConfig c = model_preset("tiny");
  // Every matrix but the lookup, then attention (6 T H P) and state (12 H N P).
  const double matrices = 6.0 * static_cast<double>(num_parameters(c) - 256 - 8 * 4 * 256 - 7 * 2 * 4);
  EXPECT_DOUBLE_EQ(flops_per_token(c, 512), matrices + 6.0 * 512 * 256 + 7 * 12.0 * 4 * 64 * 64);
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
