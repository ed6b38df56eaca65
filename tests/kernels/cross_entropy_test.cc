#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Losses and, in `logits`, their gradients, through the slices [begin, begin + count) of the vocabulary.
using Slices = std::vector<std::pair<int64_t, int64_t>>;

template <class T>
std::vector<double> run_slices(Stream& stream, const Tensor& logits, const Tensor& targets,
                               const Tensor& valid, const Slices& slices, double loss_scale,
                               bool backward = true) {
  const int64_t tokens = targets.size(0);
  const OwnedTensor max = filled<T>({tokens}, -kInfinity), sum = zeros<T>({tokens}),
                    target_logit = zeros<T>({tokens});
  for (auto [begin, count] : slices) {
    const OwnedTensor m = filled<T>({tokens}, 5), s = filled<T>({tokens}, 5), l = filled<T>({tokens}, 5);
    const Tensor slice = logits.slice(1, begin, count);
    run(stream,
        CrossEntropyStatistics{
            .logits = slice, .targets = targets, .max = m, .sum = s, .target_logit = l, .first_id = begin});
    for (int64_t t = 0; t < tokens; ++t) {
      const double combined = std::max(max[t], m[t]);
      auto rescaled = [&](double part, double old_max) {
        return part == 0 ? 0 : part * std::exp(old_max - combined);
      };
      set(sum, t, rescaled(sum[t], max[t]) + rescaled(s[t], m[t]));
      set(max, t, combined);
      set(target_logit, t, target_logit[t] + l[t]);
    }
  }
  std::vector<double> losses;
  for (int64_t t = 0; t < tokens; ++t)
    losses.push_back(get(valid, t) != 0 ? std::log(sum[t]) + max[t] - target_logit[t] : 0);
  if (backward)
    for (auto [begin, count] : slices)
      run(stream, CrossEntropyBackward{.logits = logits.slice(1, begin, count),
                                       .targets = targets,
                                       .valid = valid,
                                       .max = max,
                                       .sum = sum,
                                       .loss_scale = loss_scale,
                                       .first_id = begin});
  return losses;
}

struct Expected {
  std::vector<double> losses, gradients;
};

Expected definition(const Tensor& logits, const Tensor& targets, const Tensor& valid, double loss_scale) {
  const int64_t tokens = logits.size(0), width = logits.size(1);
  Expected result;
  for (int64_t t = 0; t < tokens; ++t) {
    long double max = -kInfinity, sum = 0;
    for (int64_t i = 0; i < width; ++i) max = std::max<long double>(max, get(logits, t * width + i));
    for (int64_t i = 0; i < width; ++i) sum += std::exp(get(logits, t * width + i) - max);
    const auto target = static_cast<int64_t>(get(targets, t));
    const bool counts = get(valid, t) != 0;
    result.losses.push_back(
        counts ? static_cast<double>(std::log(sum) + max - get(logits, t * width + target)) : 0);
    for (int64_t i = 0; i < width; ++i) {
      const long double p = std::exp(get(logits, t * width + i) - max) / sum;
      result.gradients.push_back(counts ? static_cast<double>(loss_scale * (p - (i == target ? 1 : 0))) : 0);
    }
  }
  return result;
}

template <class T>
void check(int64_t width, const Slices& slices, double scale, int64_t padding) {
  Stream stream(2);
  const int64_t tokens = 9;
  const OwnedTensor logits = random_normal<T>({tokens, width}, 1, scale, 2, padding);
  const OwnedTensor targets = random_integers<int32_t>({tokens}, 2, 0, width);
  const OwnedTensor valid = filled<uint8_t>({tokens}, 1);
  set(valid, 3, 0);
  const Expected expected = definition(logits, targets, valid, 0.25);
  const std::vector<double> losses = run_slices<T>(stream, logits, targets, valid, slices, 0.25);
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-13;
  EXPECT_LT(relative_error(losses, expected.losses), width == 1 ? kInfinity : tolerance) << width;
  EXPECT_LT(relative_error(logits, expected.gradients), tolerance) << width << " scale " << scale;
  EXPECT_TRUE(logits.padding_intact());
}

TEST(CrossEntropy, EqualsItsDefinition) {
  for (int64_t width : {2, 7, 63, 65, 704, 5000})
    for (double scale : {1.0, 30.0})
      for (int64_t padding : {0, 3}) {
        check<float>(width, {{0, width}}, scale, padding);
        check<double>(width, {{0, width}}, scale, padding);
      }
}

TEST(CrossEntropy, SlicesOfTheVocabularyMakeTheWhole) {
  check<float>(131, {{0, 33}, {33, 33}, {66, 33}, {99, 32}}, 3, 0);
  check<double>(131, {{0, 33}, {33, 33}, {66, 33}, {99, 32}}, 3, 5);
  check<float>(131, {{0, 131}, {131, 0}}, 3, 0);
  check<double>(7, {{0, 0}, {0, 1}, {1, 6}}, 3, 0);
}

TEST(CrossEntropy, SliceWithoutColumns) {
  Stream stream;
  const OwnedTensor targets = zeros<int32_t>({2}), max = zeros<float>({2}), sum = filled<float>({2}, 5);
  const OwnedTensor target_logit = filled<float>({2}, 5);
  run(stream, CrossEntropyStatistics{.logits = {},
                                     .targets = targets,
                                     .max = max,
                                     .sum = sum,
                                     .target_logit = target_logit,
                                     .first_id = 0});
  EXPECT_EQ(values(max), (std::vector<double>{-kInfinity, -kInfinity}));
  EXPECT_EQ(values(sum), (std::vector<double>{0, 0}));
  EXPECT_EQ(values(target_logit), (std::vector<double>{0, 0}));
}

TEST(CrossEntropy, PaddingColumnsOfMinusInfinity) {
  Stream stream;
  const OwnedTensor targets = filled<int32_t>({2}, 3), valid = filled<uint8_t>({2}, 1);
  const OwnedTensor padded = filled<float>({2, 40}, -kInfinity), plain = random_normal<float>({2, 20}, 1, 4);
  copy(plain, padded.view().slice(1, 0, 20));
  const std::vector<double> expected = run_slices<float>(stream, plain, targets, valid, {{0, 20}}, 1);
  // The second slice is padding only.
  const std::vector<double> got = run_slices<float>(stream, padded, targets, valid, {{0, 30}, {30, 10}}, 1);
  EXPECT_LT(relative_error(got, expected), 1e-6);
  EXPECT_LT(relative_error(padded.view().slice(1, 0, 20), plain), 1e-6);
  for (int64_t i = 20; i < 40; ++i) EXPECT_EQ(padded[i], 0);
}

TEST(CrossEntropy, HugeLogits) {
  Stream stream;
  const OwnedTensor logits = zeros<float>({2, 3000}), targets = filled<int32_t>({2}, 2500);
  const OwnedTensor valid = filled<uint8_t>({2}, 1);
  set(logits, 2500, 1e30);  // row 0: certain and right
  for (int64_t i = 0; i < 3000; ++i) set(logits, 3000 + i, -3e38);
  const std::vector<double> losses = run_slices<float>(stream, logits, targets, valid, {{0, 3000}}, 1);
  EXPECT_EQ(losses[0], 0);
  EXPECT_EQ(logits[2500], 0);
  EXPECT_NEAR(logits[3000], 1.0 / 3000, 1e-9) << "row 1: uniform";
}

TEST(CrossEntropy, NotFiniteLogitsAreNotHidden) {
  Stream stream;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const OwnedTensor targets = filled<int32_t>({1}, 0), valid = filled<uint8_t>({1}, 1);
  for (double bad : {nan, kInfinity})
    for (int64_t at : {1, 70, 99}) {
      const OwnedTensor logits = zeros<float>({1, 100});
      set(logits, at, bad);
      EXPECT_FALSE(std::isfinite(run_slices<float>(stream, logits, targets, valid, {{0, 100}}, 1)[0])) << bad;
      EXPECT_TRUE(std::isnan(logits[5]));
    }
}

TEST(CrossEntropy, BackwardIsTheGradient) {
  Stream stream;
  const OwnedTensor logits = random_normal<double>({4, 9}, 1, 2), valid = filled<uint8_t>({4}, 1);
  const OwnedTensor targets = random_integers<int32_t>({4}, 2, 0, 9), gradient = clone(logits);
  set(valid, 2, 0);
  const Slices slices = {{0, 4}, {4, 5}};
  run_slices<double>(stream, gradient, targets, valid, slices, 0.5);
  auto f = [&] {
    double sum = 0;
    for (double loss : run_slices<double>(stream, logits, targets, valid, slices, 0.5, false))
      sum += 0.5 * loss;
    return sum;
  };
  EXPECT_LT(gradcheck(f, logits, gradient), 1e-7);
}

TEST(CrossEntropy, AnyNumberOfThreadsGivesTheSameBits) {
  const OwnedTensor targets = random_integers<int32_t>({50}, 2, 0, 3001), valid = filled<uint8_t>({50}, 1);
  const OwnedTensor a = random_normal<float>({50, 3001}, 1), b = clone(a);
  Stream one(1), three(3);
  EXPECT_EQ(run_slices<float>(one, a, targets, valid, {{0, 3001}}, 1),
            run_slices<float>(three, b, targets, valid, {{0, 3001}}, 1));
  EXPECT_TRUE(same_bits(a, b));
}

}  // namespace
}  // namespace transxssm
