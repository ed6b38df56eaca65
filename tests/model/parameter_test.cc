// Initial values: the same element on every cut, and distributed as the model page says.
#include "model/parameter.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/network.h"
#include "parallel/local.h"

namespace transxssm {
namespace {

ModelConfig small_config() {
  return model_config_from_text(
      "vocab_size: 131 d_model: 64 num_layers: 4 num_heads: 4 num_kv_heads: 2 num_groups: 2 d_ff: 112 "
      "d_state: 16 "
      "chunk: 16 attn_period: 4 attn_offset: 3");
}

struct Made {
  std::unique_ptr<Communicator> alone = single_rank();
  std::unique_ptr<Network> network;
};

Made make(const ModelConfig& config, int tp, int tp_rank, uint64_t seed) {
  Made made;
  made.network =
      std::make_unique<Network>(config, Shard::of(config, tp, tp_rank),
                                StageCut{.num_layers = static_cast<int>(config.num_layers)}, *made.alone, 8);
  Stream stream(1);
  made.network->parameters().allocate(true);
  made.network->parameters().initialise(stream, seed, config.initializer_range);
  return made;
}

TEST(Initialisation, EveryCutStartsFromTheSameWeights) {
  const ModelConfig config = small_config();
  const Made whole = make(config, 1, 0, 5);
  for (int tp : {2, 4}) {
    for (int rank = 0; rank < tp; ++rank) {
      const Made part = make(config, tp, rank, 5);
      const auto& all = part.network->parameters().all();
      for (size_t i = 0; i < all.size(); ++i) {
        const Parameter& p = all[i];
        Tensor logical = whole.network->parameters().all()[i].weight;
        ASSERT_EQ(p.spec.name, whole.network->parameters().all()[i].spec.name);
        for (int dim = 0; dim < logical.rank(); ++dim)
          logical = logical.slice(dim, p.spec.box.offset[dim], p.spec.box.extent[dim]);
        std::vector<float> expected(static_cast<size_t>(p.weight.num_elements()));
        copy(logical, Tensor(expected.data(), DType::f32, p.weight.shape()));
        const float* actual = p.weight.data<float>();
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), actual))
            << p.spec.name << " tp " << tp << " rank " << rank;
      }
    }
  }
}

TEST(Initialisation, HasTheDistributionsOfTheModel) {
  const ModelConfig config = small_config();
  const Made made = make(config, 1, 0, 6);
  const Made other = make(config, 1, 0, 7);
  double sum = 0, squares = 0, count = 0;
  for (size_t i = 0; i < made.network->parameters().all().size(); ++i) {
    const Parameter& p = made.network->parameters().all()[i];
    for (int64_t j = 0; j < p.num_elements(); ++j) {
      const double w = p.weight.data<float>()[j];
      if (p.spec.name.ends_with("A_log")) {
        EXPECT_GE(std::exp(w), 1.0 - 1e-6);
        EXPECT_LE(std::exp(w), 16.0);
      } else if (p.spec.name.ends_with("dt_bias")) {
        const double dt = std::log1p(std::exp(w));
        EXPECT_GE(dt, 1e-3 * (1 - 1e-4));
        EXPECT_LE(dt, 1e-1 * (1 + 1e-4));
      } else if (!p.spec.decays()) {
        EXPECT_EQ(w, 1.0) << p.spec.name;
      } else {
        sum += w;
        squares += w * w;
        ++count;
        EXPECT_LT(std::abs(w), 0.02 * 7);
      }
    }
    if (p.spec.init == Init::normal) {
      EXPECT_NE(p.weight.data<float>()[0], other.network->parameters().all()[i].weight.data<float>()[0])
          << p.spec.name;
    }
  }
  EXPECT_NEAR(sum / count, 0, 0.02 * 4 / std::sqrt(count));
  EXPECT_NEAR(std::sqrt(squares / count), 0.02, 0.02 * 4 / std::sqrt(count));
}

TEST(Shares, KvHeadsAndGroupsHaveOneOwner) {
  const ModelConfig config = small_config();
  for (const char* name : {"attn.k_proj", "attn.v_proj", "ssd.b_proj", "ssd.c_proj"}) {
    int64_t owned = 0, held = 0;
    for (int rank = 0; rank < 4; ++rank) {
      const Made made = make(config, 4, rank, 1);
      for (const Parameter& p : made.network->parameters().all()) {
        if (p.spec.name.find(name) == std::string::npos) continue;
        EXPECT_EQ(p.spec.gradient_sum_share, 2) << p.spec.name;
        held += p.num_elements();
        if (p.spec.owner) owned += p.num_elements();
      }
    }
    EXPECT_EQ(held, 2 * owned) << name;
  }
}

}  // namespace
}  // namespace transxssm
