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
  using A = Wide<T>;
  const OwnedTensor max = filled<A>({tokens}, -kInfinity), sum = zeros<A>({tokens}),
                    target_logit = zeros<A>({tokens});
  for (auto [begin, count] : slices) {
    const OwnedTensor m = filled<A>({tokens}, 5), s = filled<A>({tokens}, 5), l = filled<A>({tokens}, 5);
    const Tensor slice = logits.slice(1, begin, count);
    run_and_wait(
        stream,
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
      run_and_wait(stream, CrossEntropyBackward{.logits = logits.slice(1, begin, count),
                                                .targets = targets,
                                                .valid = valid,
                                                .max = max,
                                                .sum = sum,
                                                .loss_scale = filled<double>({1}, loss_scale),
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
  Stream stream = test_stream(2);
  const int64_t tokens = 9;
  const OwnedTensor logits = random_normal<T>({tokens, width}, 1, scale, 2, padding);
  const OwnedTensor targets = random_integers<int32_t>({tokens}, 2, 0, width);
  const OwnedTensor valid = filled<uint8_t>({tokens}, 1);
  set(valid, 3, 0);
  const Expected expected = definition(logits, targets, valid, 0.25);
  const std::vector<double> losses = run_slices<T>(stream, logits, targets, valid, slices, 0.25);
  EXPECT_LT(relative_error(losses, expected.losses), tolerance<Wide<T>>(2e-6, 1e-13)) << width;
  EXPECT_LT(relative_error(logits, expected.gradients), tolerance<T>(2e-6, 1e-13))
      << width << " scale " << scale;
  EXPECT_TRUE(logits.padding_intact());
}

TEST(CrossEntropy, EqualsItsDefinition) {
  for (int64_t width : {2, 7, 63, 65, 704, 5000})
    for (double scale : {1.0, 30.0})
      for (int64_t padding : {0, 3})
        for_dtypes<float, double, BFloat16>([&](auto type) {
          check<decltype(type)>(width, {{0, width}}, scale, padding);
        });
}

TEST(CrossEntropy, SlicesOfTheVocabularyMakeTheWhole) {
  for_dtypes<float, double, BFloat16>([](auto type) {
    using T = decltype(type);
    check<T>(131, {{0, 32}, {32, 32}, {64, 32}, {96, 35}}, 3, 0);
    check<T>(131, {{0, 131}, {131, 0}}, 3, 0);
    if (!on_cpu()) return;  // slices whose rows start anywhere
    check<T>(131, {{0, 33}, {33, 33}, {66, 33}, {99, 32}}, 3, 5);
    check<T>(7, {{0, 0}, {0, 1}, {1, 6}}, 3, 0);
  });
}

template <class T>
void check_slice_without_columns() {
  Stream stream = test_stream();
  const OwnedTensor targets = zeros<int32_t>({2}), max = zeros<T>({2}), sum = filled<T>({2}, 5);
  const OwnedTensor target_logit = filled<T>({2}, 5);
  run_and_wait(stream, CrossEntropyStatistics{.logits = {},
                                              .targets = targets,
                                              .max = max,
                                              .sum = sum,
                                              .target_logit = target_logit,
                                              .first_id = 0});
  EXPECT_EQ(values(max), (std::vector<double>{-kInfinity, -kInfinity}));
  EXPECT_EQ(values(sum), (std::vector<double>{0, 0}));
  EXPECT_EQ(values(target_logit), (std::vector<double>{0, 0}));
}

TEST(CrossEntropy, SliceWithoutColumns) {
  for_dtypes<float>([](auto type) { check_slice_without_columns<decltype(type)>(); });
}

template <class T>
void check_padding_columns() {
  Stream stream = test_stream();
  const OwnedTensor targets = filled<int32_t>({2}, 3), valid = filled<uint8_t>({2}, 1);
  const OwnedTensor padded = filled<T>({2, 40}, -kInfinity), plain = random_normal<T>({2, 20}, 1, 4);
  copy(plain, padded.view().slice(1, 0, 20));
  const std::vector<double> expected = run_slices<T>(stream, plain, targets, valid, {{0, 20}}, 1);
  // The second slice is padding only.
  const std::vector<double> got = run_slices<T>(stream, padded, targets, valid, {{0, 24}, {24, 16}}, 1);
  EXPECT_LT(relative_error(got, expected), 1e-6);
  EXPECT_LT(relative_error(padded.view().slice(1, 0, 20), plain), tolerance<T>(1e-6, 0));
  for (int64_t i = 20; i < 40; ++i) EXPECT_EQ(padded[i], 0);
}

TEST(CrossEntropy, PaddingColumnsOfMinusInfinity) {
  for_dtypes<float, BFloat16>([](auto type) { check_padding_columns<decltype(type)>(); });
}

template <class T>
void check_huge_logits() {
  Stream stream = test_stream();
  const OwnedTensor logits = zeros<T>({2, 3000}), targets = filled<int32_t>({2}, 2500);
  const OwnedTensor valid = filled<uint8_t>({2}, 1);
  set(logits, 2500, 1e30);  // row 0: certain and right
  for (int64_t i = 0; i < 3000; ++i) set(logits, 3000 + i, -3e38);
  const std::vector<double> losses = run_slices<T>(stream, logits, targets, valid, {{0, 3000}}, 1);
  EXPECT_EQ(losses[0], 0);
  EXPECT_EQ(logits[2500], 0);
  EXPECT_NEAR(logits[3000], 1.0 / 3000, tolerance<T>(3e-6, 0) / 3000) << "row 1: uniform";
}

TEST(CrossEntropy, HugeLogits) {
  for_dtypes<float, BFloat16>([](auto type) { check_huge_logits<decltype(type)>(); });
}

template <class T>
void check_not_finite() {
  Stream stream = test_stream();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const OwnedTensor targets = filled<int32_t>({1}, 0), valid = filled<uint8_t>({1}, 1);
  for (double bad : {nan, kInfinity})
    for (int64_t at : {1, 70, 99}) {
      const OwnedTensor logits = zeros<T>({1, 100});
      set(logits, at, bad);
      EXPECT_FALSE(std::isfinite(run_slices<T>(stream, logits, targets, valid, {{0, 100}}, 1)[0])) << bad;
      EXPECT_TRUE(std::isnan(logits[5]));
    }
}

TEST(CrossEntropy, NotFiniteLogitsAreNotHidden) {
  for_dtypes<float, BFloat16>([](auto type) { check_not_finite<decltype(type)>(); });
}

template <class T>
void check_gradient() {
  Stream stream = test_stream();
  const OwnedTensor logits = random_normal<T>({4, 9}, 1, 2), valid = filled<uint8_t>({4}, 1);
  const OwnedTensor targets = random_integers<int32_t>({4}, 2, 0, 9), gradient = clone(logits);
  set(valid, 2, 0);
  const Slices slices = {{0, 4}, {4, 5}};
  run_slices<T>(stream, gradient, targets, valid, slices, 0.5);
  auto f = [&] {
    double sum = 0;
    for (double loss : run_slices<T>(stream, logits, targets, valid, slices, 0.5, false)) sum += 0.5 * loss;
    return sum;
  };
  EXPECT_LT(gradcheck(f, logits, gradient), 1e-7);
}

TEST(CrossEntropy, BackwardIsTheGradient) {
  for_dtypes<double>([](auto type) { check_gradient<decltype(type)>(); });
}

template <class T>
void check_threads() {
  const OwnedTensor targets = random_integers<int32_t>({50}, 2, 0, 3001), valid = filled<uint8_t>({50}, 1);
  const OwnedTensor a = random_normal<T>({50, 3001}, 1), b = clone(a);
  Stream one = test_stream(1), three = test_stream(3);
  EXPECT_EQ(run_slices<T>(one, a, targets, valid, {{0, 3001}}, 1),
            run_slices<T>(three, b, targets, valid, {{0, 3001}}, 1));
  EXPECT_TRUE(same_bits(a, b));
}

TEST(CrossEntropy, AnyNumberOfThreadsGivesTheSameBits) {
  for_dtypes<float, BFloat16>([](auto type) { check_threads<decltype(type)>(); });
}

// Statistics of slices, the last of them of padding only.
template <class T>
void check_combine(int64_t slices, int64_t tokens, int64_t padding) {
  Stream stream = test_stream(2);
  const OwnedTensor parts = random_normal<T>({slices, 3, tokens}, 1, 20, 0, padding),
                    combined = filled<T>({3, tokens}, 99, padding);
  const auto part = [&](int64_t r, int64_t which, int64_t t) { return (r * 3 + which) * tokens + t; };
  std::vector<double> max, sum, hit;
  for (int64_t t = 0; t < tokens; ++t) {
    double largest = -kInfinity, total = 0, logit = 0;
    for (int64_t r = 0; r < slices; ++r) {
      const bool empty = r == slices - 1 && slices > 1;
      if (empty) set(parts, part(r, 0, t), -kInfinity);
      set(parts, part(r, 1, t), empty ? 0 : std::abs(parts[part(r, 1, t)]) + 1);
      if (r != t % slices) set(parts, part(r, 2, t), 0);
      largest = std::max(largest, parts[part(r, 0, t)]);
      logit += parts[part(r, 2, t)];
    }
    for (int64_t r = 0; r < slices; ++r)
      total += parts[part(r, 1, t)] * std::exp(parts[part(r, 0, t)] - largest);
    max.push_back(largest), sum.push_back(total), hit.push_back(logit);
  }
  run_and_wait(stream, CrossEntropyCombine{.slices = parts, .combined = combined});
  EXPECT_EQ(values(combined.view().select(0, 0)), max);
  EXPECT_LT(relative_error(combined.view().select(0, 1), sum), tolerance<T>(2e-6, 1e-13)) << slices;
  EXPECT_EQ(values(combined.view().select(0, 2)), hit);
  EXPECT_TRUE(combined.padding_intact());
}

TEST(CrossEntropy, CombinedStatisticsAreThoseOfTheWholeVocabulary) {
  for (int64_t slices : {1, 2, 5})
    for (int64_t tokens : {1, 70})
      for_dtypes<float, double>([&](auto type) { check_combine<decltype(type)>(slices, tokens, 3); });
}

TEST(CrossEntropy, CombiningDoesNotHideNans) {
  Stream stream = test_stream();
  for (int64_t rank : {0, 1}) {
    const OwnedTensor parts = filled<float>({2, 3, 1}, 1), combined = zeros<float>({3, 1});
    set(parts, rank * 3 + 1, std::numeric_limits<double>::quiet_NaN());
    run_and_wait(stream, CrossEntropyCombine{.slices = parts, .combined = combined});
    EXPECT_TRUE(std::isnan(combined[1])) << rank;
  }
}

template <class T>
void check_loss(int64_t tokens) {
  const OwnedTensor valid = random_integers<uint8_t>({tokens}, 1, 0, 2);
  const OwnedTensor max = random_normal<T>({tokens}, 2, 10), sum = random_normal<T>({tokens}, 3, 3, 100),
                    target_logit = random_normal<T>({tokens}, 4);
  double expected = 7;
  for (int64_t t = 0; t < tokens; ++t)
    if (valid[t] != 0) expected += std::log(sum[t]) + max[t] - target_logit[t];
  double first = 0;
  for (int num_threads : {1, 3}) {
    Stream stream = test_stream(num_threads);
    const OwnedTensor loss = filled<double>({1}, 7);
    run_and_wait(stream, CrossEntropyLoss{valid, max, sum, target_logit, loss});
    EXPECT_NEAR(loss[0], expected, 1e-12 * static_cast<double>(tokens) * 10) << tokens;
    if (num_threads == 1) first = loss[0];
    EXPECT_EQ(loss[0], first) << "on " << num_threads << " threads";
  }
}

TEST(CrossEntropy, LossOfTheValidTokensIsAdded) {
  for (int64_t tokens : {1, 70, 5000})
    for_dtypes<float, double>([&](auto type) { check_loss<decltype(type)>(tokens); });
}

}  // namespace
}  // namespace transxssm
