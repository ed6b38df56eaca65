#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

template <class T>
struct Case {
  explicit Case(int64_t count)
      : weight(random_normal<T>({count}, 1)), exp_avg(zeros<T>({count})), exp_avg_sq(zeros<T>({count})) {}
  AdamW args(const Tensor& gradient, int64_t step) const {
    return {.weight = weight,
            .gradient = gradient,
            .exp_avg = exp_avg,
            .exp_avg_sq = exp_avg_sq,
            .learning_rate = 1e-2,
            .beta1 = 0.9,
            .beta2 = 0.999,
            .eps = 1e-8,
            .weight_decay = 0.1,
            .gradient_scale = 0.5,
            .step = step};
  }
  OwnedTensor weight, exp_avg, exp_avg_sq;
};

template <class T>
void check(int64_t count, int num_threads) {
  Stream stream = test_stream(num_threads);
  const Case<T> c(count);
  std::vector<double> w = values(c.weight), m(w.size()), v(w.size());
  for (int step = 1; step <= 5; ++step) {
    const OwnedTensor gradient =
        random_normal<T>({count}, static_cast<uint64_t>(10 + step), step == 3 ? 1e-6 : 2);
    run_and_wait(stream, c.args(gradient, step));
    for (size_t i = 0; i < w.size(); ++i) {
      const double g = 0.5 * gradient[static_cast<int64_t>(i)];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      const double m_hat = m[i] / (1 - std::pow(0.9, step)), v_hat = v[i] / (1 - std::pow(0.999, step));
      w[i] -= 1e-2 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * w[i]);
    }
  }
  const double bound = tolerance<T>(1e-6, 1e-14);
  EXPECT_LT(relative_error(c.weight, w), bound) << count;
  EXPECT_LT(relative_error(c.exp_avg, m), bound) << count;
  EXPECT_LT(relative_error(c.exp_avg_sq, v), bound) << count;
}

TEST(AdamW, EqualsItsDefinition) {
  for (int64_t count : {1, 7, 63, 65, 704, 20001})
    for (int num_threads : {1, 2})
      for_dtypes<float, double>([&](auto type) { check<decltype(type)>(count, num_threads); });
}

TEST(AdamW, ZeroGradientOnlyDecays) {
  Stream stream = test_stream();
  const OwnedTensor gradient = zeros<float>({3});
  const Case<float> c(3);
  const std::vector<double> before = values(c.weight);
  run_and_wait(stream, c.args(gradient, 1));
  for (int64_t i = 0; i < 3; ++i) EXPECT_NEAR(c.weight[i], before[static_cast<size_t>(i)] * (1 - 1e-3), 1e-7);
}

TEST(AdamW, RoundedWeights) {
  Stream stream = test_stream(2);
  for (int64_t count : {1, 65, 20001}) {
    const OwnedTensor gradient = random_normal<float>({count}, 2), rounded = filled<BFloat16>({count}, 99);
    const Case<float> with(count), without(count);
    AdamW args = with.args(gradient, 1);
    args.rounded = rounded;
    run_and_wait(stream, args);
    run_and_wait(stream, without.args(gradient, 1));
    EXPECT_TRUE(same_bits(with.weight, without.weight));
    EXPECT_TRUE(same_bits(rounded, converted<BFloat16>(with.weight)));
  }
}

// A rank's range of a parameter gets the bits the whole update gives, wherever the range is cut.
TEST(AdamW, RangesAndThreadsGiveTheSameBits) {
  const int64_t count = 30000;
  const OwnedTensor gradient = random_normal<float>({count}, 2);
  const Case<float> whole(count), cut(count);
  Stream one = test_stream(1), three = test_stream(3);
  run_and_wait(one, whole.args(gradient, 3));
  for (auto [begin, size] : {std::pair<int64_t, int64_t>{0, 11}, {11, 20003}, {20014, count - 20014}}) {
    AdamW args = cut.args(gradient, 3);
    for (Tensor* tensor : {&args.weight, &args.gradient, &args.exp_avg, &args.exp_avg_sq})
      *tensor = tensor->slice(0, begin, size);
    run_and_wait(three, args);
  }
  EXPECT_TRUE(same_bits(whole.weight, cut.weight));
  EXPECT_TRUE(same_bits(whole.exp_avg, cut.exp_avg) && same_bits(whole.exp_avg_sq, cut.exp_avg_sq));
}

}  // namespace
}  // namespace transxssm
