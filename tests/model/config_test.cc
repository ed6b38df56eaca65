#include "model/config.h"

#include <fmt/format.h>
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

// One field a line, in the words of the text.
const char* const kEveryField = R"(vocab_size: 131
d_model: 48
num_layers: 3
num_heads: 2
num_kv_heads: 1
d_ff: 40
d_state: 16
num_groups: 1
chunk: 24
attn_period: 4
attn_offset: 2
rope_base: 500.125
norm_eps: 3e-07
learned_residual: false
tie_embeddings: false
d_skip: true
initializer_range: 0.1
max_position_embeddings: 77
layer_pattern: "SAS"
attention_rope: false
ssd_position: "conv1d"
ssd_expand: 3
ssd_gate: true
conv_kernel: 5
rope_scaling: "yarn"
rope_scaling_factor: 2.5
rope_original_length: 33
log_n_scale: true
head_dim: 40
attention_bias: true
mlp_bias: true
rope_low_freq_factor: 1.5
rope_high_freq_factor: 6
)";

TEST(ModelConfig, EveryFieldSurvivesTheText) {
  const ModelConfig c = {.vocab_size = 131,
                         .d_model = 48,
                         .num_layers = 3,
                         .num_heads = 2,
                         .num_kv_heads = 1,
                         .d_ff = 40,
                         .d_state = 16,
                         .num_groups = 1,
                         .chunk = 24,
                         .attn_period = 4,
                         .attn_offset = 2,
                         .rope_base = 500.125,
                         .norm_eps = 3e-7,
                         .learned_residual = false,
                         .tie_embeddings = false,
                         .d_skip = true,
                         .layer_pattern = "SAS",
                         .attention_rope = false,
                         .ssd_position = SsdPosition::conv1d,
                         .ssd_expand = 3,
                         .ssd_gate = true,
                         .conv_kernel = 5,
                         .rope_scaling = RopeScaling::yarn,
                         .rope_scaling_factor = 2.5,
                         .rope_original_length = 33,
                         .log_n_scale = true,
                         .initializer_range = 0.1,
                         .max_position_embeddings = 77,
                         .head_dim = 40,
                         .attention_bias = true,
                         .mlp_bias = true,
                         .rope_low_freq_factor = 1.5,
                         .rope_high_freq_factor = 6};
  EXPECT_EQ(to_text(c), kEveryField);
  EXPECT_EQ(model_config_from_text(kEveryField), c);
  EXPECT_THAT(problems(c), IsEmpty());
}

TEST(ModelConfig, WordsOfEveryEnumeration) {
  for (const char* word : {"rope", "conv1d", "none"}) {
    const std::string text = fmt::format("ssd_position: \"{}\"\n", word);
    EXPECT_THAT(to_text(model_config_from_text(text)), HasSubstr(text));
  }
  for (const char* word : {"none", "linear", "dynamic", "yarn", "llama3"}) {
    const std::string text = fmt::format("rope_scaling: \"{}\"\n", word);
    EXPECT_THAT(to_text(model_config_from_text(text)), HasSubstr(text));
  }
  EXPECT_EQ(model_config_from_text("rope_scaling: \"dynamic\"").rope_scaling, RopeScaling::dynamic);
  EXPECT_EQ(model_config_from_text("ssd_position: \"none\"").ssd_position, SsdPosition::none);
  EXPECT_THAT([] { model_config_from_text("ssd_position: \"conv\""); },
              ::testing::ThrowsMessage<UsageError>(
                  "ssd_position: \"conv\" is not known; legal values are rope, conv1d, none"));
  EXPECT_THAT([] { model_config_from_text("rope_scaling: \"\""); },
              ::testing::ThrowsMessage<UsageError>(
                  "rope_scaling: \"\" is not known; legal values are none, linear, dynamic, yarn, llama3"));
}

TEST(ModelConfig, TextFromBeforeTheSwitchesMeansWhatItMeant) {
  const std::string text = kEveryField;
  const std::string old = text.substr(0, text.find("layer_pattern"));
  const ModelConfig c = model_config_from_text(old);
  ModelConfig expected = model_config_from_text(kEveryField);
  expected.layer_pattern = "";
  expected.attention_rope = true;
  expected.ssd_position = SsdPosition::rope;
  expected.ssd_expand = 1;
  expected.ssd_gate = false;
  expected.conv_kernel = 4;
  expected.rope_scaling = RopeScaling::none;
  expected.rope_scaling_factor = 4;
  expected.rope_original_length = 2048;
  expected.log_n_scale = false;
  expected.head_dim = 0;
  expected.attention_bias = expected.mlp_bias = false;
  expected.rope_low_freq_factor = 1;
  expected.rope_high_freq_factor = 4;
  EXPECT_EQ(c, expected);
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
  EXPECT_EQ(c.head_width(), 64);
  EXPECT_EQ(c.groups(), 32);
  EXPECT_EQ(c.num_attention_layers(), 3);
  EXPECT_FALSE(c.is_attention(0));
  EXPECT_TRUE(c.is_attention(7));
  const ModelConfig llama = model_preset("llama-320m");
  EXPECT_EQ(llama.num_attention_layers(), llama.num_layers);
  EXPECT_FALSE(llama.learned_residual);
  const ModelConfig mamba2 = model_preset("mamba2-320m");
  EXPECT_EQ(mamba2.num_attention_layers(), 0);
  EXPECT_EQ(mamba2.d_ff, 0);
  EXPECT_EQ(mamba2.head_width(), 64);
  EXPECT_EQ(mamba2.ssd_heads(), 24);
  EXPECT_EQ(mamba2.groups(), 1);
  const ModelConfig jamba = model_preset("jamba-1.3b");
  EXPECT_EQ(jamba.num_attention_layers(), 3);
  EXPECT_EQ(jamba.groups(), 8);
  for (const ModelConfig& baseline : {mamba2, jamba}) {
    EXPECT_TRUE(baseline.ssd_position == SsdPosition::conv1d && baseline.ssd_gate && baseline.d_skip);
    EXPECT_FALSE(baseline.attention_rope || baseline.learned_residual);
  }
}

TEST(ModelConfig, LayerKinds) {
  ModelConfig c = model_preset("tiny");
  c.layer_pattern = "SSSASSSA";
  EXPECT_EQ(c.num_attention_layers(), 2);
  EXPECT_TRUE(c.is_attention(3) && c.is_attention(7));
  EXPECT_FALSE(c.is_attention(4));
  c.layer_pattern = "";
  c.attn_period = 0;
  EXPECT_EQ(c.num_attention_layers(), 0);
  EXPECT_THAT(problems(c), IsEmpty());
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
  EXPECT_EQ(problems(ModelConfig()).size(), 4u);
  EXPECT_EQ(problems(ModelConfig())[0],
            "vocab_size: is not set; give a value from 1 to 16777216, or a preset");
}

TEST(ModelConfig, ProblemsOfTheSwitches) {
  ModelConfig c = model_preset("jamba-320m");
  c.d_ff = 0;
  EXPECT_THAT(problems(c), IsEmpty());
  c.layer_pattern = "SSxA";
  c.ssd_expand = 17;
  c.conv_kernel = 9;
  c.rope_scaling_factor = std::numeric_limits<double>::quiet_NaN();
  c.rope_original_length = 1;
  EXPECT_THAT(
      problems(c),
      ElementsAre("layer_pattern: letter 3 is \"x\"; legal letters are A and S",
                  "layer_pattern: has 4 letters; num_layers 24 needs one a layer",
                  "ssd_expand: 17 is out of range; the nearest legal value is 16",
                  "conv_kernel: 9 is out of range; the nearest legal value is 8",
                  "rope_scaling_factor: nan is out of range; it must be at least 1 and at most 1000000",
                  "rope_original_length: 1 is out of range; the nearest legal value is 2"));
  c = model_preset("jamba-320m");
  c.ssd_expand = 0;
  c.conv_kernel = 0;
  c.d_ff = -1;
  c.rope_scaling_factor = 0.5;
  EXPECT_EQ(problems(c).size(), 4u);
  c = model_preset("jamba-320m");
  c.num_groups = 10;
  EXPECT_THAT(problems(c), ElementsAre("num_groups: 10 does not divide ssd_expand x num_heads 24; the "
                                       "nearest legal values are 8 and 12"));
  c.num_groups = 24;  // a group a head
  EXPECT_THAT(problems(c), IsEmpty());
  c.max_position_embeddings = 1;
  EXPECT_THAT(problems(c), IsEmpty());
  c.log_n_scale = true;
  EXPECT_THAT(problems(c), ElementsAre("max_position_embeddings: 1 is out of range with log_n_scale; the "
                                       "nearest legal value is 2"));
  c.rope_scaling = RopeScaling::linear;
  EXPECT_THAT(problems(c), IsEmpty());
}

TEST(ModelConfig, StateSpaceFieldsAreNotCheckedWithoutStateSpaceLayers) {
  ModelConfig c = model_preset("llama-320m");
  c.num_groups = 5;
  c.d_state = 12;
  EXPECT_THAT(problems(c), IsEmpty());
  c.attn_period = 2;
  EXPECT_EQ(problems(c).size(), 2u);
}

TEST(ModelConfig, WidthOfHeads) {
  ModelConfig c = model_preset("llama-320m");
  EXPECT_EQ(c.head_width(), 64);
  c.head_dim = 128;  // wider than d_model / num_heads
  EXPECT_EQ(c.head_width(), 128);
  EXPECT_THAT(problems(c), IsEmpty());
  c.num_heads = 7;  // which does not divide d_model
  EXPECT_THAT(problems(c), IsEmpty());
  c.head_dim = 6;
  EXPECT_THAT(problems(c), IsEmpty());
  c.head_dim = 7;
  EXPECT_THAT(problems(c), ElementsAre("head_dim: 7 is not a multiple of 2; the nearest legal value is 6"));
  c.head_dim = 0;
  EXPECT_THAT(problems(c), ElementsAre("num_heads: 7 does not cut d_model 768 into heads of a multiple of 2; "
                                       "the nearest legal values are 6 and 8"));
  c.head_dim = -1;
  EXPECT_THAT(problems(c), ElementsAre("head_dim: -1 is out of range; the nearest legal value is 4"));
  c.head_dim = 1 << 12;
  c.num_heads = 1 << 11;
  EXPECT_THAT(problems(c), ElementsAre(HasSubstr("the nearest legal value is 2048")));
  c = model_preset("tiny");
  c.head_dim = 20;
  EXPECT_THAT(problems(c), ElementsAre("head_dim: 20 is not a multiple of 8; the nearest legal value is 16"));
}

TEST(ModelConfig, FrequencyFactorsOfLlama3) {
  ModelConfig c = model_preset("llama-320m");
  c.rope_low_freq_factor = c.rope_high_freq_factor = 2;
  EXPECT_THAT(problems(c), IsEmpty());  // of another scaling
  c.rope_scaling = RopeScaling::llama3;
  EXPECT_THAT(problems(c), ElementsAre("rope_high_freq_factor: 2 must be above rope_low_freq_factor 2"));
  c.rope_low_freq_factor = 0;
  EXPECT_EQ(problems(c).size(), 1u);
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

TEST(ModelConfig, MeshesOfBaselines) {
  // 8 groups on 12 heads: 1, 2 and 4 divide both; 12 ranks share no group evenly. Without FFN and attention
  // nothing but heads and the one group counts.
  const ModelConfig jamba = model_preset("jamba-320m");
  EXPECT_THAT(mesh_problems(jamba, 1, 4), IsEmpty());
  EXPECT_THAT(mesh_problems(jamba, 1, 12),
              ElementsAre("parallel.tp: 12 does not divide d_ff 2944; legal values are 1, 2, 4",
                          "parallel.tp: 12 neither divides nor is a multiple of num_groups 8; legal values "
                          "are 1, 2, 4"));
  const ModelConfig mamba2 = model_preset("mamba2-320m");
  for (int tp : {1, 2, 3, 4, 6, 12}) EXPECT_THAT(mesh_problems(mamba2, 74, tp), IsEmpty()) << tp;
  EXPECT_THAT(
      mesh_problems(mamba2, 1, 24),
      ElementsAre("parallel.tp: 24 does not divide num_heads 12; legal values are 1, 2, 3, 4, 6, 12"));
}

}  // namespace
}  // namespace transxssm
