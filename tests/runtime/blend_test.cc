#include "runtime/data/blend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/error.h"

namespace transxssm {
namespace {

using testing::ElementsAre;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Blend, FollowsTheRuleOfLargestLagWhereWeightsHaveASmallDenominator) {
  // The rule itself, in whole numbers: the largest m_i * max(n, 1) - M * drawn_i, the first of equals.
  const std::vector<std::vector<double>> cases = {
      {1}, {1, 1}, {3, 7}, {0.5, 0.25, 0.25}, {0.3, 0.3, 0.3, 0.1}, {1, 2, 3, 5, 7}, {1, 1000}, {65535, 1}};
  for (const auto& weights : cases) {
    const Blend blend(weights);
    const std::vector<int64_t>& m = blend.numerators();
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<int64_t> drawn(weights.size(), 0);
    for (int64_t n = 0; n < 200000; ++n) {
      size_t best = 0;
      for (size_t i = 1; i < m.size(); ++i)
        if (m[i] * std::max<int64_t>(n, 1) - drawn[i] * blend.period() >
            m[best] * std::max<int64_t>(n, 1) - drawn[best] * blend.period())
          best = i;
      const Blend::Draw draw = blend(n);
      ASSERT_EQ(draw.source, static_cast<int>(best)) << n;
      ASSERT_EQ(draw.index, drawn[best]++) << n;
      if (n % 7919 == 0) {
        ASSERT_EQ(blend.counts(n + 1), drawn) << n;
      }
    }
    for (size_t i = 0; i < m.size(); ++i)
      EXPECT_NEAR(static_cast<double>(drawn[i]) / 200000, weights[i] / sum, 3e-5) << i;
  }
  EXPECT_EQ(Blend({0.3, 0.7}).period(), 10);
  EXPECT_EQ(Blend({1, 2}).period(), 3);
  // In any unit, also where the sum is no double.
  for (const double unit : {1e-300, 1e300, 5e-324, 8e307}) EXPECT_EQ(Blend({unit, 2 * unit}).period(), 3);
}

TEST(Blend, RefusesWhatIsNoWeight) {
  for (const double bad : {0.0, -0.0, -1.0, kInfinity, -kInfinity, std::nan("")}) {
    EXPECT_THROW(Blend({1, bad}), UsageError) << bad;
    EXPECT_THROW(Blend({bad}), UsageError) << bad;
  }
  EXPECT_THROW(Blend(std::vector<double>{}), UsageError);
}

// The second law as its header states it, with a running remainder for each source in the place of products:
// round(k m / R) rises by one exactly where the remainder of k m + R / 2 passes R.
class Reference {
 public:
  explicit Reference(const std::vector<int64_t>& numerators) {
    for (size_t i = 0; i < numerators.size(); ++i)
      if (numerators[i] > 0) sources_.push_back({static_cast<int>(i), numerators[i], 0, 0, 0});
    std::stable_sort(sources_.begin(), sources_.end(),
                     [](const Source& a, const Source& b) { return a.m < b.m; });
    for (size_t i = 0; i < sources_.size(); ++i) {
      for (size_t j = i; j < sources_.size(); ++j) sources_[i].twice_sum += 2 * Wide(sources_[j].m);
      sources_[i].remainder = sources_[i].twice_sum / 2;
    }
  }
  Blend::Draw next() {
    for (Source& s : sources_) {
      s.remainder += 2 * Wide(s.m);
      if (s.remainder < s.twice_sum) continue;
      s.remainder -= s.twice_sum;
      return {s.number, s.drawn++};
    }
    return {-1, -1};
  }

 private:
  using Wide = unsigned __int128;
  struct Source {
    int number;
    int64_t m;
    Wide twice_sum, remainder;
    int64_t drawn;
  };
  std::vector<Source> sources_;
};

const std::vector<std::vector<double>> kOtherWeights = {{1, 1e-9},
                                                        {1e-5, 1},
                                                        {0.123456, 0.3, 2.71828},
                                                        {1, 1e-6, 1e-7, 3e-5, 0.7},
                                                        {1e300, 1e-300, 1e299},
                                                        {5e-324, 1, 1e-18},
                                                        {1, 1 / 100003.0},
                                                        {0.333333, 0.666667},
                                                        {1e308, 1.7e308, 1.2345678e307}};

TEST(Blend, GivesOtherWeightsTheirSharesByTheirLaw) {
  constexpr int64_t kDraws = 1'000'000;
  for (const auto& weights : kOtherWeights) {
    const Blend blend(weights);
    ASSERT_EQ(blend.period(), 0);
    Reference reference(blend.numerators());
    std::vector<int64_t> drawn(weights.size(), 0);
    for (int64_t n = 0; n < kDraws; ++n) {
      const Blend::Draw draw = blend(n), expected = reference.next();
      ASSERT_EQ(draw.source, expected.source) << n;
      ASSERT_EQ(draw.index, expected.index) << n;
      ++drawn[static_cast<size_t>(draw.source)];
      if (n % 50021 != 0 && n + 1 != kDraws) continue;
      ASSERT_EQ(blend.counts(n + 1), drawn);
      double scale = *std::max_element(weights.begin(), weights.end()), sum = 0;
      for (const double w : weights) sum += w / scale;
      for (size_t i = 0; i < weights.size(); ++i)
        ASSERT_NEAR(static_cast<double>(drawn[i]), weights[i] / scale / sum * static_cast<double>(n + 1), 1.5)
            << "source " << i << " after " << n + 1;
    }
  }
  // Half of its interval passes before the first sample of a small source.
  const Blend blend({1, 1e-9});
  EXPECT_THAT(blend.counts(140800), ElementsAre(140800, 0));
  EXPECT_THAT(blend.counts(500'000'000), ElementsAre(500'000'000, 0));
  EXPECT_THAT(blend.counts(500'000'002), ElementsAre(500'000'001, 1));
  EXPECT_THAT(Blend({1, 1e-30}).counts(int64_t{1} << 60), ElementsAre(int64_t{1} << 60, 0));
}

TEST(Blend, AnySampleAtOnce) {
  // Far beyond what a double counts: neighbours follow one another without a gap.
  std::vector<std::vector<double>> all = kOtherWeights;
  all.push_back({3, 7});
  all.push_back({1});
  for (const auto& weights : all) {
    const Blend blend(weights);
    for (const int64_t start : {int64_t{1} << 53, (int64_t{1} << 62) - 500}) {
      std::vector<int64_t> drawn = blend.counts(start);
      EXPECT_EQ(std::accumulate(drawn.begin(), drawn.end(), int64_t{0}), start);
      for (int64_t n = start; n < start + 1000; ++n) {
        const Blend::Draw draw = blend(n);
        ASSERT_EQ(draw.index, drawn[static_cast<size_t>(draw.source)]++) << n;
      }
      EXPECT_EQ(drawn, blend.counts(start + 1000));
    }
  }
}

}  // namespace
}  // namespace transxssm
