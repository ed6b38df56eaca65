#include "kernels/rmsnorm.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

// The tensors of one forward and backward; `residual`: with branch and learned residual weight.
// S: the residual stream, T: the branches.
template <class S, class T>
struct Case {
  Case(int64_t tokens, int64_t width, bool residual, int64_t padding = 0)
      : x(random_normal<S>({tokens, width}, 1, 2, 0.5, padding)),
        weight(random_normal<Wide<T>>({width}, 2, 0.2, 1)),
        y(zeros<T>({tokens, width}, padding)),
        rstd(zeros<Wide<T>>({tokens})),
        dy(random_normal<T>({tokens, width}, 3, 1, 0, padding)),
        d_sum(random_normal<S>({tokens, width}, 4, 1, 0, padding)),
        dx(zeros<S>({tokens, width}, padding)),
        d_weight(random_normal<Wide<T>>({width}, 5)) {
    forward = {.x = x, .weight = weight, .y = y, .rstd = rstd};
    backward = {
        .dy = dy, .d_sum = d_sum, .sum = x, .rstd = rstd, .weight = weight, .dx = dx, .d_weight = d_weight};
    if (!residual) return;
    branch = random_normal<T>({tokens, width}, 6, 1, 0, padding);
    residual_weight = random_normal<Wide<T>>({width}, 7, 0.2, 1);
    sum = zeros<S>({tokens, width}, padding);
    d_branch = zeros<T>({tokens, width}, padding);
    d_residual_weight = random_normal<Wide<T>>({width}, 8);
    forward.branch = branch, forward.residual_weight = residual_weight, forward.sum = sum;
    backward.sum = sum, backward.x = x, backward.residual_weight = residual_weight;
    backward.d_branch = d_branch, backward.d_residual_weight = d_residual_weight;
  }
  OwnedTensor x, weight, y, rstd, dy, d_sum, dx, d_weight;
  OwnedTensor branch, residual_weight, sum, d_branch, d_residual_weight;
  RmsNormForward forward;
  RmsNormBackward backward;
};

template <class S, class T>
void check_forward(int64_t tokens, int64_t width, bool residual, int64_t padding) {
  Stream stream = test_stream(2);
  const Case<S, T> c(tokens, width, residual, padding);
  run_and_wait(stream, c.forward);
  std::vector<double> sum, y, rstd;
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0;
    for (int64_t i = t * width; i < (t + 1) * width; ++i) {
      sum.push_back(residual ? c.residual_weight[i % width] * c.x[i] + c.branch[i] : c.x[i]);
      // A sum that is rounded to bf16 is normalised as it was stored.
      const double v = sizeof(S) == 2 && residual ? c.sum[i] : sum.back();
      y.push_back(v * c.weight[i % width]);
      squares += v * v;
    }
    rstd.push_back(1 / std::sqrt(squares / static_cast<double>(width) + 1e-6));
    for (int64_t i = t * width; i < (t + 1) * width; ++i) y[static_cast<size_t>(i)] *= rstd.back();
  }
  EXPECT_LT(relative_error(c.y, y), tolerance<T>(1e-6, 1e-14)) << tokens << " x " << width;
  EXPECT_LT(relative_error(c.rstd, rstd), tolerance<Wide<T>>(1e-6, 1e-14)) << tokens << " x " << width;
  if (residual) {
    EXPECT_LT(relative_error(c.sum, sum), tolerance<S>(1e-6, 1e-14));
    EXPECT_TRUE(c.sum.padding_intact());
  }
  EXPECT_TRUE(c.y.padding_intact());
}

TEST(RmsNorm, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (bool residual : {false, true})
      for (int64_t padding : {0, 3})
        for_stream_dtypes([&](auto stream_type, auto branch) {
          check_forward<decltype(stream_type), decltype(branch)>(9, width, residual, padding);
        });
}

// With n = sum rstd and g = dy weight: d sum_i = rstd (g_i - n_i mean(g n)), by the chain rule.
template <class S, class T>
void check_backward(int64_t tokens, int64_t width, bool residual, int64_t padding) {
  Stream stream = test_stream(2);
  const Case<S, T> c(tokens, width, residual, padding);
  run_and_wait(stream, c.forward);
  const OwnedTensor& sum = residual ? c.sum : c.x;
  std::vector<double> total, dx, d_weight = values(c.d_weight), d_residual;
  if (residual) d_residual = values(c.d_residual_weight);
  for (int64_t t = 0; t < tokens; ++t) {
    double mean = 0;
    for (int64_t i = t * width; i < (t + 1) * width; ++i)
      mean += c.dy[i] * c.weight[i % width] * sum[i] * c.rstd[t] / static_cast<double>(width);
    for (int64_t i = t * width; i < (t + 1) * width; ++i) {
      const auto channel = static_cast<size_t>(i % width);
      const double normal = sum[i] * c.rstd[t];
      total.push_back(c.d_sum[i] + c.rstd[t] * (c.dy[i] * c.weight[i % width] - normal * mean));
      dx.push_back(total.back() * (residual ? c.residual_weight[i % width] : 1));
      d_weight[channel] += c.dy[i] * normal;
      if (residual) d_residual[channel] += total.back() * c.x[i];
    }
  }
  run_and_wait(stream, c.backward);
  EXPECT_LT(relative_error(c.dx, dx), tolerance<S>(2e-6, 1e-13)) << tokens << " x " << width;
  EXPECT_LT(relative_error(c.d_weight, d_weight), tolerance<Wide<T>>(2e-6, 1e-13)) << width;
  EXPECT_TRUE(c.dx.padding_intact());
  if (!residual) return;
  EXPECT_LT(relative_error(c.d_branch, total), tolerance<T>(2e-6, 1e-13)) << tokens << " x " << width;
  EXPECT_LT(relative_error(c.d_residual_weight, d_residual), tolerance<Wide<T>>(1e-5, 1e-13)) << width;
  EXPECT_TRUE(c.d_branch.padding_intact());
}

TEST(RmsNorm, BackwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 65, 704})
    for (bool residual : {false, true})
      for (int64_t padding : {0, 3})
        for_stream_dtypes([&](auto stream_type, auto branch) {
          check_backward<decltype(stream_type), decltype(branch)>(70, width, residual, padding);
        });
}

template <class T>
void check_huge_and_tiny_rows() {
  Stream stream = test_stream();
  const OwnedTensor x = zeros<T>({3, 64}), weight = filled<Wide<T>>({64}, 1), y = zeros<T>({3, 64});
  const OwnedTensor rstd = zeros<Wide<T>>({3});
  for (int64_t i = 0; i < 64; ++i) set(x, i, 1e15), set(x, 64 + i, 1e-20);
  run_and_wait(stream, RmsNormForward{.x = x, .weight = weight, .y = y, .rstd = rstd});
  EXPECT_NEAR(y[0], 1, tolerance<T>(1e-6, 1e-6));
  EXPECT_NEAR(y[64], 1e-17, 1e-17 * tolerance<T>(1e-5, 1e-5) * 2) << "eps is under the root";
  EXPECT_EQ(y[128], 0);
}

TEST(RmsNorm, HugeAndTinyRows) {
  for_dtypes<float, BFloat16>([](auto type) { check_huge_and_tiny_rows<decltype(type)>(); });
}

template <class T>
double loss(Stream& stream, const Case<T, T>& c) {
  run_and_wait(stream, c.forward);
  return dot(c.y, c.dy) + dot(c.branch.view() ? c.sum.view() : c.x.view(), c.d_sum);
}

template <class T>
void check_gradient(int64_t tokens, int64_t width, bool residual) {
  Stream stream = test_stream(2);
  Case<T, T> c(tokens, width, residual);
  for (const OwnedTensor* tensor : {&c.d_weight, &c.d_residual_weight})
    if (tensor->view()) zero(*tensor);
  run_and_wait(stream, c.forward);
  run_and_wait(stream, c.backward);
  auto f = [&] { return loss(stream, c); };
  EXPECT_LT(gradcheck(f, c.x, c.dx), 1e-7);
  EXPECT_LT(gradcheck(f, c.weight, c.d_weight), 1e-7);
  if (!residual) return;
  EXPECT_LT(gradcheck(f, c.branch, c.d_branch), 1e-7);
  EXPECT_LT(gradcheck(f, c.residual_weight, c.d_residual_weight), 1e-7);
}

TEST(RmsNorm, BackwardIsTheGradient) {
  for (auto [tokens, width] : {std::pair<int64_t, int64_t>{70, 7}, {3, 65}})
    for (bool residual : {false, true})
      for_dtypes<double>(
          [&, t = tokens, w = width](auto type) { check_gradient<decltype(type)>(t, w, residual); });
}

template <class T>
void check_without_other_paths_or_weight() {
  Stream stream = test_stream();
  Case<T, T> c(5, 33, true);
  c.forward.residual_weight = c.backward.residual_weight = c.backward.d_residual_weight = Tensor();
  c.backward.d_sum = Tensor();
  run_and_wait(stream, c.forward);
  run_and_wait(stream, c.backward);
  EXPECT_TRUE(same_bits(c.dx, c.d_branch));
  if constexpr (sizeof(T) == 8) {
    auto f = [&] {
      run_and_wait(stream, c.forward);
      return dot(c.y, c.dy);
    };
    EXPECT_LT(gradcheck(f, c.x, c.dx), 1e-7);
  }
}

TEST(RmsNorm, BackwardWithoutOtherPathsOrWeight) {
  for_dtypes<float, double, BFloat16>(
      [](auto type) { check_without_other_paths_or_weight<decltype(type)>(); });
}

template <class T>
void check_accumulation() {
  Stream stream = test_stream();
  Case<T, T> once(65, 63, true), twice(65, 63, true);
  run_and_wait(stream, once.forward);
  run_and_wait(stream, twice.forward);
  const OwnedTensor before = clone(once.d_weight), residual_before = clone(once.d_residual_weight);
  run_and_wait(stream, once.backward);
  run_and_wait(stream, twice.backward);
  run_and_wait(stream, twice.backward);
  for (int64_t i = 0; i < 63; ++i) {
    EXPECT_NEAR(twice.d_weight[i] - before[i], 2 * (once.d_weight[i] - before[i]), 1e-4);
    EXPECT_NEAR(twice.d_residual_weight[i] - residual_before[i],
                2 * (once.d_residual_weight[i] - residual_before[i]), 1e-4);
  }
  EXPECT_GT(relative_error(once.d_weight, before), 0.1);
}

TEST(RmsNorm, WeightGradientsAccumulate) {
  for_dtypes<float, BFloat16>([](auto type) { check_accumulation<decltype(type)>(); });
}

template <class T>
void check_in_place(bool residual, bool into_dy) {
  Stream stream = test_stream();
  Case<T, T> apart(40, 65, residual, 2), in_place(40, 65, residual, 2);
  run_and_wait(stream, apart.forward);
  run_and_wait(stream, in_place.forward);
  in_place.backward.dx = into_dy ? in_place.dy : in_place.d_sum;
  if (residual) {
    in_place.backward.dx = in_place.dy;
    in_place.backward.d_branch = in_place.d_sum;
  }
  run_and_wait(stream, apart.backward);
  run_and_wait(stream, in_place.backward);
  EXPECT_TRUE(same_bits(apart.dx, in_place.backward.dx));
  EXPECT_TRUE(!residual || same_bits(apart.d_branch, in_place.d_sum));
  EXPECT_TRUE(same_bits(apart.d_weight, in_place.d_weight));
  EXPECT_TRUE(apart.dx.padding_intact() && in_place.dy.padding_intact() && in_place.d_sum.padding_intact());
}

TEST(RmsNorm, OutputsMayReplaceInputs) {
  for (bool residual : {false, true})
    for (bool into_dy : {false, true})
      for_dtypes<float, BFloat16>([&](auto type) { check_in_place<decltype(type)>(residual, into_dy); });
}

template <class S, class T>
void check_threads() {
  Stream one = test_stream(1);
  const Case<S, T> a(200, 100, true);
  run_and_wait(one, a.forward);
  run_and_wait(one, a.backward);
  for (int num_threads : {2, 3, 5}) {
    Stream many = test_stream(num_threads);
    const Case<S, T> b(200, 100, true);
    run_and_wait(many, b.forward);
    run_and_wait(many, b.backward);
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.rstd, b.rstd) && same_bits(a.dx, b.dx));
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight) && same_bits(a.d_residual_weight, b.d_residual_weight));
  }
}

TEST(RmsNorm, AnyNumberOfThreadsGivesTheSameBits) {
  for_stream_dtypes([](auto stream_type, auto branch) {
    if (sizeof(branch) < 8) check_threads<decltype(stream_type), decltype(branch)>();
  });
}

}  // namespace
}  // namespace transxssm
