// Decoding equals training: prefill and token by token give the logits of the full forward at each position.
#include "model/decoding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "model/training.h"
#include "parallel/local.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

constexpr int64_t kTokens = 45;  // no multiple of the chunk

// Weights small enough that last places of them do not matter: their nudges move logits by less than 5e-6 of
// the largest. At a range of 0.2 it is up to 3e-5, and processors differ by as much.
constexpr const char* kSize =
    "vocab_size: 131 d_model: 64 num_layers: 4 num_heads: 4 num_kv_heads: 2 num_groups: 2 d_state: 16 chunk: "
    "16 "
    "initializer_range: 0.1 rope_original_length: 16 layer_pattern: ";

// Every kind, and each rotary scaling past its original length of 16.
const std::vector<std::pair<std::string, std::string>> kKinds = {
    {"transxssm", "'SASA' d_ff: 112 d_skip: true"},
    {"llama", "'AAAA' d_ff: 112 learned_residual: false"},
    {"mamba2", "'SSSS' d_ff: 0 ssd_position: 'conv1d' ssd_gate: true d_skip: true ssd_expand: 2"},
    {"jamba", "'SSAS' d_ff: 112 ssd_position: 'conv1d' ssd_gate: true ssd_expand: 2 attention_rope: false"},
    {"decay", "'SSSA' d_ff: 112 ssd_position: 'none' attention_rope: false"},
    {"linear", "'SASA' d_ff: 112 rope_scaling: 'linear'"},
    {"dynamic", "'SASA' d_ff: 112 rope_scaling: 'dynamic'"},
    {"yarn", "'SASA' d_ff: 112 rope_scaling: 'yarn' log_n_scale: true"},
    {"log_n_alone",
     "'SASA' d_ff: 112 attention_rope: false ssd_position: 'none' log_n_scale: true max_position_embeddings: "
     "16"}};

struct Model {
  explicit Model(const std::string& kind) : config(model_config_from_text(kSize + kind)) { initialise(); }

  ModelConfig config;
  std::unique_ptr<Communicator> alone = single_rank();
  Network network{config, Shard::of(config, 1, 0), StageCut{.num_layers = 4}, *alone, kTokens};
  Stream stream{1};
  std::vector<int32_t> ids;

  void initialise() {
    network.parameters().allocate(true);
    network.parameters().initialise(stream, 3, config.initializer_range);
    const Rng rng(1, "ids");
    for (uint64_t t = 0; t < kTokens; ++t) ids.push_back(static_cast<int32_t>(rng.below(t, 131)));
  }

  // Logits after each token, from calls of the given lengths.
  std::vector<std::vector<float>> decode(const std::vector<int64_t>& lengths) {
    DecodingWork work(stream, network, 1);
    std::vector<std::vector<float>> logits;
    int64_t done = 0;
    for (int64_t n : lengths) {
      work.begin(Tensor(ids.data() + done, DType::i32, {1, n}));
      work.forward(0, 0, {}, {});
      done += n;
      const float* row = work.logits().data<float>();
      logits.emplace_back(row, row + config.vocab_size);
    }
    return logits;
  }
};

double worst(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return difference / largest;
}

class Decoding : public testing::TestWithParam<std::pair<std::string, std::string>> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Decoding, testing::ValuesIn(kKinds),
                         [](const auto& kind) { return kind.param.first; });

TEST_P(Decoding, OneByOneEqualsPrefillOfEveryLength) {
  Model model(GetParam().second);
  const auto single = model.decode(std::vector<int64_t>(kTokens, 1));
  for (int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 45}) {
    const auto prefill = model.decode({n});
    EXPECT_LT(worst(single[static_cast<size_t>(n - 1)], prefill.front()), 2e-5) << n;
  }
}

TEST_P(Decoding, AnyCutOfTheRowGivesTheSameLogits) {
  Model model(GetParam().second);
  const auto whole = model.decode({45});
  for (const std::vector<int64_t>& cut : {std::vector<int64_t>{16, 29}, {7, 38}, {20, 1, 1, 23}, {44, 1}})
    EXPECT_LT(worst(model.decode(cut).back(), whole.back()), 2e-5);
}

// Prompts of different length, fed one by one into one batch, then all rows stepping together: each row as if
// alone.
TEST_P(Decoding, RowsOfDifferentLengthDoNotDisturbEachOther) {
  Model model(GetParam().second);
  const std::vector<int64_t> lengths = {17, 1, 30};
  DecodingWork batch(model.stream, model.network, 3);
  for (int64_t row = 0; row < 3; ++row) {
    batch.begin(Tensor(model.ids.data() + row, DType::i32, {1, lengths[static_cast<size_t>(row)]}), row);
    batch.forward(0, 0, {}, {});
  }
  for (int step = 0; step < 4; ++step) {
    std::vector<int32_t> next;
    for (int64_t row = 0; row < 3; ++row)
      next.push_back(model.ids[static_cast<size_t>(row + lengths[static_cast<size_t>(row)] + step)]);
    batch.begin(Tensor(next.data(), DType::i32, {3, 1}));
    batch.forward(0, 0, {}, {});
    for (int64_t row = 0; row < 3; ++row) {
      DecodingWork alone(model.stream, model.network, 1);
      alone.begin(
          Tensor(model.ids.data() + row, DType::i32, {1, lengths[static_cast<size_t>(row)] + step + 1}));
      alone.forward(0, 0, {}, {});
      const float* mine = batch.logits().select(0, row).data<float>();
      const float* expected = alone.logits().data<float>();
      EXPECT_LT(worst({mine, mine + 131}, {expected, expected + 131}), 2e-5)
          << "row " << row << " step " << step;
    }
  }
}

// The loss of the training forward, token by token, from the decoder's logits. Dynamic scaling: the network's
// number of positions fixes n in both.
TEST_P(Decoding, EqualsTheTrainingForward) {
  Model model(GetParam().second);
  TokenFeed feed(model.stream, model.config, 1, kTokens - 1);
  const Batch& batch = feed.host();
  for (int64_t t = 0; t + 1 < kTokens; ++t) {
    batch.input.at<int32_t>({0, t}) = model.ids[static_cast<size_t>(t)];
    batch.target.at<int32_t>({0, t}) = model.ids[static_cast<size_t>(t + 1)];
    batch.position.at<int32_t>({0, t}) = static_cast<int32_t>(t);
  }
  const auto logits = model.decode(std::vector<int64_t>(kTokens - 1, 1));
  TrainingWork work(model.stream, model.network, 1, kTokens - 1, 1);
  for (int64_t t = 0; t + 1 < kTokens; ++t) {
    zero(batch.valid);
    batch.valid.at<uint8_t>({0, t}) = 1;
    feed.upload();
    const TokenRows rows = feed.rows(0, 1);
    work.begin_evaluation({&rows, 1});
    work.forward(0, 0, {}, {});
    double sum = 0;
    const auto& row = logits[static_cast<size_t>(t)];
    for (float l : row) sum += std::exp(static_cast<double>(l));
    const double expected = std::log(sum) - row[static_cast<size_t>(model.ids[static_cast<size_t>(t + 1)])];
    EXPECT_NEAR(work.row_losses().at(0), expected, 1e-4 * std::abs(expected)) << t;
  }
}

}  // namespace
}  // namespace transxssm
