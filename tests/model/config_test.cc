#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ModelConfig, TextRoundTripIsIdenticalForEveryPreset) {
  for (const std::string& name : model_preset_names()) {
    const ModelConfig config = model_preset(name);
    EXPECT_THAT(problems(config), IsEmpty()) << name;
    EXPECT_EQ(model_config_from_text(to_text(config)), config) << name;
    EXPECT_EQ(to_text(model_config_from_text(to_text(config))), to_text(config));
  }
}

TEST(ModelConfig, EveryFieldSurvivesTheText) {
  ModelConfig c;
  c = {131, 48, 3, 2, 1, 40, 16, 1, 24, 4, 2, 500.125, 3e-7, false, false, true, 0.1, 77};
  const std::string text = to_text(c);
  const ModelConfig back = model_config_from_text(text);
  EXPECT_EQ(back, c);
  EXPECT_EQ(back.rope_base, 500.125);
  EXPECT_EQ(back.initializer_range, 0.1);
  EXPECT_EQ(back.max_position_embeddings, 77);
  EXPECT_TRUE(back.d_skip);
  EXPECT_FALSE(back.tie_embeddings);
}

TEST(ModelConfig, FieldsOverrideThePreset) {
  const ModelConfig c = model_config_from_text("num_layers: 16 preset: \"tiny\" learned_residual: false");
  ModelConfig expected = model_preset("tiny");
  expected.num_layers = 16;
  expected.learned_residual = false;
  EXPECT_EQ(c, expected);
  EXPECT_THROW(model_config_from_text("preset: \"teeny\""), UsageError);
}

TEST(ModelConfig, PresetsHaveTheShapesOfThePaper) {
  const ModelConfig c = model_preset("transxssm-1.3b");
  EXPECT_EQ(c.d_model, 2048);
  EXPECT_EQ(c.num_layers, 24);
  EXPECT_EQ(c.head_dim(), 64);
  EXPECT_EQ(c.groups(), 32);
  EXPECT_EQ(c.num_attention_layers(), 3);
  EXPECT_FALSE(c.is_attention(0));
  EXPECT_TRUE(c.is_attention(7));
  const ModelConfig llama = model_preset("llama-320m");
  EXPECT_EQ(llama.num_attention_layers(), llama.num_layers);
  EXPECT_FALSE(llama.learned_residual);
}

TEST(ModelConfig, BrokenTextNamesLineAndColumn) {
  try {
    model_config_from_text("d_model: 8\nnum_heads = 2\n");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("model configuration:2:11: "));
  }
  EXPECT_THROW(model_config_from_text("d_modle: 8"), UsageError);
  EXPECT_THROW(model_config_from_text(std::string(2 << 20, ' ')), UsageError);
}

TEST(ModelConfig, EveryProblemIsNamedWithTheNearestLegalValue) {
  ModelConfig c = model_preset("tiny");
  c.num_heads = 5;
  c.d_state = 61;
  c.chunk = 4;
  c.attn_offset = 8;
  c.rope_base = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(
      problems(c),
      ElementsAre(
          "chunk: 4 is out of range; the nearest legal value is 8",
          "attn_offset: 8 is out of range; with attn_period 8 the nearest legal value is 7",
          "num_heads: 5 does not cut d_model 256 into heads of a multiple of 8; the nearest legal values are "
          "4 and 8",
          "d_state: 61 is not a multiple of 8; the nearest legal value is 64",
          "rope_base: nan is out of range; it must be above 1 and at most 1000000000000"));
  c = model_preset("tiny");
  c.num_kv_heads = 3;
  c.num_groups = 8;
  EXPECT_THAT(problems(c),
              ElementsAre("num_kv_heads: 3 does not divide num_heads 4; the nearest legal values are 2 and 4",
                          "num_groups: 8 does not divide num_heads 4; the nearest legal values are 4"));
  EXPECT_EQ(problems(ModelConfig()).size(), 5u);
  EXPECT_EQ(problems(ModelConfig())[0],
            "vocab_size: is not set; give a value from 1 to 16777216, or a preset");
}

TEST(ModelConfig, StateSpaceFieldsAreNotCheckedWithoutStateSpaceLayers) {
  ModelConfig c = model_preset("llama-320m");
  c.num_groups = 5;
  c.d_state = 12;
  EXPECT_THAT(problems(c), IsEmpty());
  c.attn_period = 2;
  EXPECT_EQ(problems(c).size(), 2u);
}

TEST(ModelConfig, HostileSizesAreRefused) {
  ModelConfig c = model_preset("tiny");
  c.d_model = std::numeric_limits<int64_t>::max();
  c.num_layers = int64_t{1} << 40;
  c.num_heads = -4;
  EXPECT_EQ(problems(c).size(), 3u);
}

TEST(ModelConfig, MeshesThatDoNotFit) {
  ModelConfig c = model_preset("tiny");
  for (int tp : {1, 2, 4}) EXPECT_THAT(mesh_problems(c, 8, tp), IsEmpty()) << tp;
  EXPECT_THAT(
      mesh_problems(c, 9, 3),
      ElementsAre(
          "parallel.pp: 9 stages for num_layers 8; legal values are 1 to 8",
          "parallel.tp: 3 does not divide num_heads 4; legal values are 1, 2, 4",
          "parallel.tp: 3 does not divide d_ff 704; legal values are 1, 2, 4",
          "parallel.tp: 3 neither divides nor is a multiple of num_kv_heads 4; legal values are 1, 2, 4",
          "parallel.tp: 3 neither divides nor is a multiple of num_groups 4; legal values are 1, 2, 4"));
  c.num_kv_heads = 2;
  c.num_groups = 1;
  EXPECT_THAT(mesh_problems(c, 1, 4), IsEmpty());  // heads and groups are copied on the ranks that share them
  c.num_heads = 12;
  c.d_model = 768;
  c.num_kv_heads = 3;
  c.d_ff = 768;
  EXPECT_THAT(mesh_problems(c, 1, 4),
              ElementsAre("parallel.tp: 4 neither divides nor is a multiple of num_kv_heads "
                          "3; legal values are 1, 3, 6, 12"));
}

}  // namespace
}  // namespace transxssm
