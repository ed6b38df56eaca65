#include "kernels/residual.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

// S: the residual stream, T: the branch.
template <class S, class T>
void check_forward(int64_t width, bool learned, int64_t padding) {
  Stream stream = test_stream(2);
  const int64_t tokens = 9;
  const OwnedTensor x = random_normal<S>({tokens, width}, 1, 1, 0, padding),
                    weight = random_normal<Wide<T>>({width}, 2);
  const OwnedTensor branch = random_normal<T>({tokens, width}, 3, 1, 0, padding),
                    y = zeros<S>({tokens, width}, padding);
  ResidualForward args{.x = x, .branch = branch, .weight = {}, .y = y};
  if (learned) args.weight = weight;
  run_and_wait(stream, args);
  std::vector<double> expected;
  for (int64_t i = 0; i < tokens * width; ++i)
    expected.push_back((learned ? weight[i % width] : 1) * x[i] + branch[i]);
  EXPECT_LT(relative_error(y, expected), tolerance<S>(2e-7, 1e-15));
  EXPECT_TRUE(y.padding_intact());
  if (!std::is_same_v<S, T>) return;
  args.y = branch;
  run_and_wait(stream, args);
  EXPECT_TRUE(same_bits(branch, y)) << "in place of the branch";
}

TEST(Residual, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (bool learned : {false, true})
      for (int64_t padding : {0, 3})
        for_stream_dtypes([&](auto residual, auto branch) {
          check_forward<decltype(residual), decltype(branch)>(width, learned, padding);
        });
}

template <class S, class T>
void check_backward(int64_t width, bool learned, int64_t padding) {
  Stream stream = test_stream(2);
  const int64_t tokens = 70;
  const Shape shape{tokens, width};
  const OwnedTensor x = random_normal<S>(shape, 1, 1, 0, padding),
                    dy = random_normal<S>(shape, 2, 1, 0, padding);
  const OwnedTensor dx = zeros<S>(shape, padding), d_branch = zeros<T>(shape, padding);
  const OwnedTensor weight = random_normal<Wide<T>>({width}, 3),
                    d_weight = random_normal<Wide<T>>({width}, 4);
  ResidualBackward args{.dy = dy, .x = x, .weight = {}, .dx = dx, .d_weight = {}, .d_branch = d_branch};
  if (learned) args.weight = weight, args.d_weight = d_weight;
  std::vector<double> sums = values(d_weight), expected;
  for (int64_t i = 0; i < tokens * width; ++i) {
    expected.push_back((learned ? weight[i % width] : 1) * dy[i]);
    sums[static_cast<size_t>(i % width)] += learned ? dy[i] * x[i] : 0;
  }
  run_and_wait(stream, args);
  EXPECT_LT(relative_error(dx, expected), tolerance<S>(2e-7, 1e-15));
  EXPECT_LT(relative_error(d_weight, sums), tolerance<Wide<T>>(1e-6, 1e-14));
  EXPECT_TRUE(same_bits(d_branch, converted<T>(dy))) << "dy, rounded";
  EXPECT_TRUE(dx.padding_intact() && d_branch.padding_intact());
}

TEST(Residual, BackwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 65, 704})
    for (bool learned : {false, true})
      for (int64_t padding : {0, 3})
        for_stream_dtypes([&](auto residual, auto branch) {
          check_backward<decltype(residual), decltype(branch)>(width, learned, padding);
        });
}

template <class T>
void check_gradient(int64_t tokens, int64_t width, bool learned) {
  Stream stream = test_stream(2);
  const Shape shape{tokens, width};
  const OwnedTensor x = random_normal<T>(shape, 1, 1, 0, 2), weight = random_normal<T>({width}, 2);
  const OwnedTensor branch = random_normal<T>(shape, 3), y = zeros<T>(shape);
  const OwnedTensor dy = random_normal<T>(shape, 4, 1, 0, 1), dx = zeros<T>(shape, 1);
  const OwnedTensor d_weight = zeros<T>({width});
  ResidualForward forward{.x = x, .branch = branch, .weight = {}, .y = y};
  ResidualBackward backward{.dy = dy, .x = x, .weight = {}, .dx = dx, .d_weight = {}};
  if (learned) forward.weight = backward.weight = weight, backward.d_weight = d_weight;
  run_and_wait(stream, backward);
  auto f = [&] {
    run_and_wait(stream, forward);
    return dot(y, dy);
  };
  EXPECT_LT(gradcheck(f, x, dx), 1e-7);
  if (!learned) return;
  EXPECT_LT(gradcheck(f, weight, d_weight), 1e-7);
  const OwnedTensor once = clone(d_weight);
  run_and_wait(stream, backward);
  for (int64_t i = 0; i < width; ++i) EXPECT_NEAR(d_weight[i], 2 * once[i], 1e-12) << "weights accumulate";
}

TEST(Residual, BackwardIsTheGradient) {
  for (auto [tokens, width] : {std::pair<int64_t, int64_t>{70, 7}, {3, 65}})
    for (bool learned : {false, true})
      for_dtypes<double>(
          [&, t = tokens, w = width](auto type) { check_gradient<decltype(type)>(t, w, learned); });
}

template <class T>
void check_threads() {
  std::vector<OwnedTensor> results;
  for (int num_threads : {1, 2, 3}) {
    Stream stream = test_stream(num_threads);
    const OwnedTensor x = random_normal<T>({500, 33}, 1), dy = random_normal<T>({500, 33}, 2);
    const OwnedTensor dx = zeros<T>({500, 33});
    results.push_back(random_normal<Wide<T>>({33}, 3));
    run_and_wait(stream,
                 ResidualBackward{.dy = dy, .x = x, .weight = {}, .dx = dx, .d_weight = results.back()});
    EXPECT_TRUE(same_bits(results.front(), results.back()));
    EXPECT_TRUE(same_bits(dx, dy));
  }
}

TEST(Residual, AnyNumberOfThreadsGivesTheSameBits) {
  for_dtypes<float, BFloat16>([](auto type) { check_threads<decltype(type)>(); });
}

}  // namespace
}  // namespace transxssm
