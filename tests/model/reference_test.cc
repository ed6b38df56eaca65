// Every kind of model, and every switch by itself, computes what the model's
// definition says: the loss, and the gradient of each parameter against
// differences of the reference's loss.
#include "tests/model/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/training.h"
#include "parallel/local.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

constexpr int64_t kRows = 2;
constexpr int64_t kTokens = 37;  // no multiple of the chunk

struct Case {
  std::string name;
  bool documents;
  ModelConfig config;
};

void PrintTo(const Case& test, std::ostream* out) {
  *out << test.name;
}

// A hybrid of two layers whose every sub-layer has a say in the loss.
ModelConfig hybrid() {
  ModelConfig config;
  config.vocab_size = 37;
  config.d_model = 32;
  config.num_layers = 2;
  config.num_heads = 4;
  config.d_ff = 40;
  config.d_state = 16;
  config.chunk = 8;
  config.attn_period = 2;
  config.attn_offset = 1;
  config.initializer_range = 0.2;
  return config;
}

using Change = void (*)(ModelConfig&);

Case row(const char* name, bool documents, Change change) {
  Case result{.name = name, .documents = documents, .config = hybrid()};
  change(result.config);
  return result;
}

// Short rows of a long-context model.
void stretch(ModelConfig& c, RopeScaling scaling) {
  c.rope_scaling = scaling;
  c.rope_original_length = 16;
  c.rope_base = 100;
}

void mamba2(ModelConfig& c) {
  c.layer_pattern = "SS";
  c.d_ff = 0;
  c.ssd_position = SsdPosition::conv1d;
  c.ssd_gate = c.d_skip = true;
  c.ssd_expand = 2;
  c.num_groups = 1;
  c.learned_residual = false;
}

void jamba(ModelConfig& c) {
  c.num_groups = 2;
  c.attention_rope = c.learned_residual = false;
  c.ssd_position = SsdPosition::conv1d;
  c.ssd_gate = c.d_skip = true;
  c.ssd_expand = 2;
}

std::vector<Case> cases() {
  return {
      row("transxssm", false, [](ModelConfig&) {}),
      row("documents", true, [](ModelConfig&) {}),
      row("odd_vocabulary", true, [](ModelConfig& c) { c.vocab_size = 131; }),
      row("period_3", true, [](ModelConfig& c) { c.num_layers = c.attn_period = 3; }),
      row("pattern", true,
          [](ModelConfig& c) {
            c.num_layers = 4;
            c.layer_pattern = "ASSA";
          }),
      row("kv_heads", true, [](ModelConfig& c) { c.num_kv_heads = 2; }),
      row("one_kv_head", false, [](ModelConfig& c) { c.num_kv_heads = 1; }),
      row("groups", true, [](ModelConfig& c) { c.num_groups = 2; }),
      row("one_group", false, [](ModelConfig& c) { c.num_groups = 1; }),
      row("d_skip", true, [](ModelConfig& c) { c.d_skip = true; }),
      row("untied", true, [](ModelConfig& c) { c.tie_embeddings = false; }),
      row("plain_residual", true, [](ModelConfig& c) { c.learned_residual = false; }),
      row("no_feed_forward", true, [](ModelConfig& c) { c.d_ff = 0; }),
      row("no_attention_rope", true, [](ModelConfig& c) { c.attention_rope = false; }),
      row("decay", true, [](ModelConfig& c) { c.ssd_position = SsdPosition::none; }),
      row("conv1d", true, [](ModelConfig& c) { c.ssd_position = SsdPosition::conv1d; }),
      row("conv1d_kernel_2", false,
          [](ModelConfig& c) {
            c.ssd_position = SsdPosition::conv1d;
            c.conv_kernel = 2;
            c.num_groups = 2;
          }),
      row("conv1d_d", true,
          [](ModelConfig& c) {
            c.ssd_position = SsdPosition::conv1d;
            c.d_skip = true;
            c.attention_rope = false;
          }),
      row("gate", true, [](ModelConfig& c) { c.ssd_gate = true; }),
      row("gate_of_groups", false,
          [](ModelConfig& c) {
            c.ssd_gate = true;
            c.num_groups = 2;
          }),
      row("norm_eps", true,
          [](ModelConfig& c) {
            c.ssd_gate = true;
            c.norm_eps = 0.05;
          }),
      row("expand", true,
          [](ModelConfig& c) {
            c.ssd_expand = 2;
            c.num_groups = 2;
          }),
      row("linear", true, [](ModelConfig& c) { stretch(c, RopeScaling::linear); }),
      row("dynamic", true, [](ModelConfig& c) { stretch(c, RopeScaling::dynamic); }),
      row("yarn", true, [](ModelConfig& c) { stretch(c, RopeScaling::yarn); }),
      row("yarn_log_n", false,
          [](ModelConfig& c) {
            stretch(c, RopeScaling::yarn);
            c.log_n_scale = true;
          }),
      row("llama3", true, [](ModelConfig& c) { stretch(c, RopeScaling::llama3); }),
      row("wide_heads", true, [](ModelConfig& c) { c.head_dim = 24; }),
      row("narrow_heads_gate", false,
          [](ModelConfig& c) {
            c.d_model = 48;
            c.head_dim = 8;
            c.ssd_gate = true;
          }),
      row("biases", true,
          [](ModelConfig& c) {
            c.attention_bias = c.mlp_bias = true;
            c.num_kv_heads = 2;
          }),
      row("biases_of_attention", false, [](ModelConfig& c) { c.attention_bias = true; }),
      row("log_n", true,
          [](ModelConfig& c) {
            c.log_n_scale = true;
            c.max_position_embeddings = 4;
          }),
      row("log_n_decay", true,
          [](ModelConfig& c) {
            c.log_n_scale = true;
            c.max_position_embeddings = 4;
            c.attention_rope = false;
            c.ssd_position = SsdPosition::none;
          }),
      row("log_n_conv1d_yarn", false,
          [](ModelConfig& c) {
            stretch(c, RopeScaling::yarn);
            c.log_n_scale = true;
            c.ssd_position = SsdPosition::conv1d;
          }),
      row("llama", true,
          [](ModelConfig& c) {
            c.layer_pattern = "AA";
            c.learned_residual = c.tie_embeddings = false;
            c.num_kv_heads = 2;
          }),
      row("llama_3", true,
          [](ModelConfig& c) {
            stretch(c, RopeScaling::llama3);
            c.layer_pattern = "AA";
            c.learned_residual = false;
            c.attention_bias = c.mlp_bias = true;
            c.head_dim = 6;
          }),
      row("mamba2", true, mamba2),
      row("jamba", true, jamba),
  };
}

// Tokens and targets are drawn apart, so that no gradient hides behind another.
void fill(const Case& test, const Batch& batch) {
  const Rng rng(1, "tokens");
  const auto vocabulary = static_cast<uint64_t>(test.config.vocab_size);
  // Starts at chunk edges, inside a chunk, inside a convolution's window, and a
  // document of one token.
  const std::vector<int64_t> starts[kRows] = {{5, 6, 16, 31}, {2, 23}};
  for (int64_t b = 0; b < kRows; ++b) {
    int32_t document = 0, position = 0;
    for (int64_t t = 0; t < kTokens; ++t, ++position) {
      if (test.documents && std::count(starts[b].begin(), starts[b].end(), t)) ++document, position = 0;
      const auto index = static_cast<uint64_t>(3 * (b * kTokens + t));
      batch.input.at<int32_t>({b, t}) = static_cast<int32_t>(rng.below(index, vocabulary));
      batch.target.at<int32_t>({b, t}) = static_cast<int32_t>(rng.below(index + 1, vocabulary));
      batch.valid.at<uint8_t>({b, t}) = rng.below(index + 2, 6) != 0;
      batch.document.at<int32_t>({b, t}) = document;
      batch.position.at<int32_t>({b, t}) = position;
    }
  }
}

// Initial values hide mistakes: weights of one, and states that forget within a
// token. These do not.
void spread(const Parameter& p) {
  const Rng rng(2, p.spec.name);
  float* w = p.weight.data<float>();
  for (int64_t i = 0; i < p.num_elements(); ++i) {
    const double z = rng.normal(static_cast<uint64_t>(i));
    if (p.spec.init == Init::ones) w[i] = static_cast<float>(1 + 0.3 * z);
    if (p.spec.init == Init::zeros) w[i] = static_cast<float>(0.3 * z);
    if (p.spec.init == Init::a_log) w[i] = static_cast<float>(-1.5 + z);
    if (p.spec.init == Init::dt_bias) w[i] = static_cast<float>(-0.5 + 0.5 * z);
  }
}

class WholeModel : public testing::TestWithParam<Case> {};

TEST_P(WholeModel, EqualsItsDefinition) {
  const Case& test = GetParam();
  ASSERT_EQ(problems(test.config), std::vector<std::string>{});
  Stream stream(1);
  TokenFeed feed(stream, test.config, kRows, kTokens);
  const Batch& batch = feed.host();
  fill(test, batch);
  feed.upload();
  int64_t targets = 0;
  for (int64_t i = 0; i < kRows * kTokens; ++i) targets += batch.valid.data<uint8_t>()[i];

  const auto alone = single_rank();
  Network network(test.config, Shard::of(test.config, 1, 0),
                  StageCut{.num_layers = static_cast<int>(test.config.num_layers)}, *alone, kTokens);
  network.parameters().allocate(true);
  network.parameters().initialise(stream, 3, test.config.initializer_range);
  Reference::Weights weights;
  for (const Parameter& p : network.parameters().all()) {
    spread(p);
    const float* w = p.weight.data<float>();
    weights[p.spec.name] = {w, w + p.num_elements()};
  }
  TrainingWork work(stream, network, kRows, kTokens, 1);
  const double scale = 1 / static_cast<double>(targets);
  network.parameters().zero_gradients(stream);
  const TokenRows rows = feed.rows(0, kRows);
  work.begin_training({&rows, 1}, scale);
  work.forward(0, 0, {}, {});
  work.backward_input(0, 0, {}, {});
  work.backward_weight(0, 0);

  Reference reference(test.config, batch, std::move(weights));
  const double loss = reference.loss();
  EXPECT_NEAR(work.loss_sum() * scale, loss, 2e-6 * loss);
  for (const Parameter& p : network.parameters().all()) {
    const float* gradient = p.gradient.data<float>();
    for (int k = 0; k < 2; ++k) {
      const Rng rng(static_cast<uint64_t>(k), p.spec.name);
      std::vector<double> direction;
      double along = 0, g = 0, d = 0;
      for (int64_t i = 0; i < p.num_elements(); ++i) {
        direction.push_back(rng.normal(static_cast<uint64_t>(i)));
        along += static_cast<double>(gradient[i]) * direction.back();
        g += static_cast<double>(gradient[i]) * gradient[i];
        d += direction.back() * direction.back();
      }
      // Of what a random direction gives on average: also where this one is
      // nearly at right angles.
      const double tolerance = 5e-5 * std::sqrt(g * d / static_cast<double>(p.num_elements()));
      EXPECT_GT(g, 0) << p.spec.name;
      EXPECT_NEAR(along, reference.derivative(p.spec.name, direction), tolerance) << p.spec.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, WholeModel, testing::ValuesIn(cases()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace transxssm
