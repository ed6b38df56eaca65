#include "kernels/rmsnorm.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

// The tensors of one forward and backward; `residual`: with branch and learned residual weight.
template <class T>
struct Case {
  Case(int64_t tokens, int64_t width, bool residual, int64_t padding = 0)
      : x(random_normal<T>({tokens, width}, 1, 2, 0.5, padding)),
        weight(random_normal<T>({width}, 2, 0.2, 1)),
        y(zeros<T>({tokens, width}, padding)),
        rstd(zeros<T>({tokens})),
        dy(random_normal<T>({tokens, width}, 3, 1, 0, padding)),
        d_sum(random_normal<T>({tokens, width}, 4, 1, 0, padding)),
        dx(zeros<T>({tokens, width}, padding)),
        d_weight(random_normal<T>({width}, 5)) {
    forward = {.x = x, .weight = weight, .y = y, .rstd = rstd};
    backward = {
        .dy = dy, .d_sum = d_sum, .sum = x, .rstd = rstd, .weight = weight, .dx = dx, .d_weight = d_weight};
    if (!residual) return;
    branch = random_normal<T>({tokens, width}, 6, 1, 0, padding);
    residual_weight = random_normal<T>({width}, 7, 0.2, 1);
    sum = zeros<T>({tokens, width}, padding);
    d_branch = zeros<T>({tokens, width}, padding);
    d_residual_weight = random_normal<T>({width}, 8);
    forward.branch = branch, forward.residual_weight = residual_weight, forward.sum = sum;
    backward.sum = sum, backward.x = x, backward.residual_weight = residual_weight;
    backward.d_branch = d_branch, backward.d_residual_weight = d_residual_weight;
  }
  OwnedTensor x, weight, y, rstd, dy, d_sum, dx, d_weight;
  OwnedTensor branch, residual_weight, sum, d_branch, d_residual_weight;
  RmsNormForward forward;
  RmsNormBackward backward;
};

template <class T>
void check_forward(int64_t tokens, int64_t width, bool residual, int64_t padding) {
  Stream stream(2);
  Case<T> c(tokens, width, residual, padding);
  run(stream, c.forward);
  std::vector<double> sum, y, rstd;
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double x = c.x[t * width + i];
      sum.push_back(residual ? c.residual_weight[i] * x + c.branch[t * width + i] : x);
      squares += sum.back() * sum.back();
    }
    rstd.push_back(1 / std::sqrt(squares / static_cast<double>(width) + 1e-6));
    for (int64_t i = 0; i < width; ++i)
      y.push_back(sum[static_cast<size_t>(t * width + i)] * rstd.back() * c.weight[i]);
  }
  const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-14;
  EXPECT_LT(relative_error(c.y, y), tolerance) << tokens << " x " << width;
  EXPECT_LT(relative_error(c.rstd, rstd), tolerance) << tokens << " x " << width;
  if (residual) {
    EXPECT_LT(relative_error(c.sum, sum), tolerance);
    EXPECT_TRUE(c.sum.padding_intact());
  }
  EXPECT_TRUE(c.y.padding_intact());
}

TEST(RmsNorm, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (bool residual : {false, true})
      for (int64_t padding : {0, 3}) {
        check_forward<float>(9, width, residual, padding);
        check_forward<double>(9, width, residual, padding);
      }
}

TEST(RmsNorm, HugeAndTinyRows) {
  Stream stream;
  const OwnedTensor x = zeros<float>({3, 64}), weight = filled<float>({64}, 1), y = zeros<float>({3, 64});
  const OwnedTensor rstd = zeros<float>({3});
  for (int64_t i = 0; i < 64; ++i) set(x, i, 1e15), set(x, 64 + i, 1e-20);
  run(stream, RmsNormForward{.x = x, .weight = weight, .y = y, .rstd = rstd});
  EXPECT_NEAR(y[0], 1, 1e-6);
  EXPECT_NEAR(y[64], 1e-17, 1e-22) << "eps is under the root";
  EXPECT_EQ(y[128], 0);
}

double loss(Stream& stream, const Case<double>& c) {
  run(stream, c.forward);
  return dot(c.y, c.dy) + dot(c.branch.view() ? c.sum.view() : c.x.view(), c.d_sum);
}

TEST(RmsNorm, BackwardIsTheGradient) {
  Stream stream(2);
  for (auto [tokens, width] : {std::pair<int64_t, int64_t>{70, 7}, {3, 65}})
    for (bool residual : {false, true}) {
      Case<double> c(tokens, width, residual);
      for (const OwnedTensor* tensor : {&c.d_weight, &c.d_residual_weight})
        if (tensor->view()) zero(*tensor);
      run(stream, c.forward);
      run(stream, c.backward);
      auto f = [&] { return loss(stream, c); };
      EXPECT_LT(gradcheck(f, c.x, c.dx), 1e-7);
      EXPECT_LT(gradcheck(f, c.weight, c.d_weight), 1e-7);
      if (!residual) continue;
      EXPECT_LT(gradcheck(f, c.branch, c.d_branch), 1e-7);
      EXPECT_LT(gradcheck(f, c.residual_weight, c.d_residual_weight), 1e-7);
    }
}

TEST(RmsNorm, BackwardWithoutOtherPathsOrWeight) {
  Stream stream;
  Case<double> c(5, 33, true);
  c.forward.residual_weight = c.backward.residual_weight = c.backward.d_residual_weight = Tensor();
  c.backward.d_sum = Tensor();
  run(stream, c.forward);
  run(stream, c.backward);
  auto f = [&] {
    run(stream, c.forward);
    return dot(c.y, c.dy);
  };
  EXPECT_LT(gradcheck(f, c.x, c.dx), 1e-7);
  EXPECT_TRUE(same_bits(c.dx, c.d_branch));
}

TEST(RmsNorm, WeightGradientsAccumulate) {
  Stream stream;
  Case<float> once(65, 63, true), twice(65, 63, true);
  run(stream, once.forward);
  run(stream, twice.forward);
  const OwnedTensor before = clone(once.d_weight), residual_before = clone(once.d_residual_weight);
  run(stream, once.backward);
  run(stream, twice.backward);
  run(stream, twice.backward);
  for (int64_t i = 0; i < 63; ++i) {
    EXPECT_NEAR(twice.d_weight[i] - before[i], 2 * (once.d_weight[i] - before[i]), 1e-4);
    EXPECT_NEAR(twice.d_residual_weight[i] - residual_before[i],
                2 * (once.d_residual_weight[i] - residual_before[i]), 1e-4);
  }
  EXPECT_GT(relative_error(once.d_weight, before), 0.1);
}

TEST(RmsNorm, OutputsMayReplaceInputs) {
  Stream stream;
  for (bool residual : {false, true})
    for (bool into_dy : {false, true}) {
      Case<float> apart(40, 65, residual, 2), in_place(40, 65, residual, 2);
      run(stream, apart.forward);
      run(stream, in_place.forward);
      in_place.backward.dx = into_dy ? in_place.dy : in_place.d_sum;
      if (residual) {
        in_place.backward.dx = in_place.dy;
        in_place.backward.d_branch = in_place.d_sum;
      }
      run(stream, apart.backward);
      run(stream, in_place.backward);
      EXPECT_TRUE(same_bits(apart.dx, in_place.backward.dx));
      EXPECT_TRUE(!residual || same_bits(apart.d_branch, in_place.d_sum));
      EXPECT_TRUE(same_bits(apart.d_weight, in_place.d_weight));
      EXPECT_TRUE(apart.dx.padding_intact() && in_place.dy.padding_intact() &&
                  in_place.d_sum.padding_intact());
    }
}

TEST(RmsNorm, AnyNumberOfThreadsGivesTheSameBits) {
  Stream one(1);
  Case<float> a(200, 100, true);
  run(one, a.forward);
  run(one, a.backward);
  for (int num_threads : {2, 3, 5}) {
    Stream many(num_threads);
    Case<float> b(200, 100, true);
    run(many, b.forward);
    run(many, b.backward);
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.rstd, b.rstd) && same_bits(a.dx, b.dx));
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight) && same_bits(a.d_residual_weight, b.d_residual_weight));
  }
}

}  // namespace
}  // namespace transxssm
