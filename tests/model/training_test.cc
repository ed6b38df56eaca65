// The order in which a step's gradients become complete, as whoever sums them hears of it.
#include "model/training.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "parallel/local.h"
#include "runtime/rng.h"
#include "tests/support/model_kinds.h"

namespace transxssm {
namespace {

constexpr int64_t kTokens = 11;
constexpr int kMicrobatches = 2;

struct Heard {
  int64_t first;
  std::vector<float> gradient;  // all of it, at that time
};

void fill(const Batch& batch, int64_t vocabulary) {
  const Rng rng(1, "tokens");
  for (int64_t b = 0; b < batch.rows(); ++b) {
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto at = static_cast<uint64_t>(2 * (b * kTokens + t));
      batch.input.at<int32_t>({b, t}) =
          static_cast<int32_t>(rng.below(at, static_cast<uint64_t>(vocabulary)));
      batch.target.at<int32_t>({b, t}) =
          static_cast<int32_t>(rng.below(at + 1, static_cast<uint64_t>(vocabulary)));
      batch.valid.at<uint8_t>({b, t}) = 1;
      batch.document.at<int32_t>({b, t}) = 0;
      batch.position.at<int32_t>({b, t}) = static_cast<int32_t>(t);
    }
  }
}

class GradientsComplete : public testing::TestWithParam<Recompute> {};

// What is said to be complete does not change any more, and each layer is said to be before the next is.
TEST_P(GradientsComplete, LayerByLayerInTheLastMicrobatch) {
  for (const ModelKind& kind : model_kinds()) {
    SCOPED_TRACE(kind.name);
    const ModelConfig& config = kind.config;
    const auto layers = static_cast<size_t>(config.num_layers);
    Stream stream(1);
    const auto alone = single_rank();
    Network network(config, Shard::of(config, 1, 0), StageCut{.num_layers = static_cast<int>(layers)}, *alone,
                    kTokens);
    const ParameterStore& store = network.parameters();
    network.parameters().allocate(true);
    network.parameters().initialise(stream, 3, 0.2);
    TokenFeed feed(stream, config, kMicrobatches, kTokens);
    fill(feed.host(), config.vocab_size);
    feed.upload();
    std::vector<TokenRows> microbatches;
    for (int k = 0; k < kMicrobatches; ++k) microbatches.push_back(feed.rows(k, 1));

    TrainingWork work(stream, network, 1, kTokens, kMicrobatches, GetParam());
    const Tensor flat = store.flat_gradient();
    const auto now = [&] {
      return std::vector<float>(flat.data<float>(), flat.data<float>() + flat.num_elements());
    };
    std::vector<Heard> heard;
    int finished = 0;
    work.sum_gradients({.complete =
                            [&](int64_t first) {
                              heard.push_back({first, now()});
                            },
                        .finish = [&] { ++finished; }});
    store.zero_gradients(stream);
    work.begin_training(microbatches, 1.0 / (kMicrobatches * kTokens));
    for (int k = 0; k < kMicrobatches; ++k) work.forward(k, k, {}, {});
    for (int k = 0; k < kMicrobatches; ++k) {
      EXPECT_EQ(heard.size(), 0U);
      work.backward_input(k, k, {}, {});
      work.backward_weight(k, k);
    }
    const std::vector<float> final = now();
    ASSERT_EQ(heard.size(), layers + 1);
    EXPECT_EQ(heard.back().first, 0);
    EXPECT_EQ(finished, 0);
    work.reduce_gradients();
    EXPECT_EQ(finished, 1);
    for (size_t i = 0; i < heard.size(); ++i) {
      const int64_t first = heard[i].first, before = i == 0 ? flat.num_elements() : heard[i - 1].first;
      EXPECT_LT(first, before);
      EXPECT_TRUE(std::equal(final.begin() + first, final.end(), heard[i].gradient.begin() + first)) << i;
      if (i == 0) continue;
      EXPECT_FALSE(
          std::equal(final.begin() + first, final.begin() + before, heard[i - 1].gradient.begin() + first))
          << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Recomputed, GradientsComplete, testing::Values(Recompute::keep, Recompute::layer),
                         [](const auto& instance) {
                           return instance.param == Recompute::keep ? "keep" : "layer";
                         });

}  // namespace
}  // namespace transxssm
