#include "kernels/bias.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

template <class T>
void check_forward(int64_t width, int64_t padding) {
  Stream stream = test_stream(2);
  const int64_t tokens = 9;
  const OwnedTensor y = random_normal<T>({tokens, width}, 1, 1, 0, padding),
                    bias = random_normal<Wide<T>>({width}, 2);
  std::vector<double> expected = values(y);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[static_cast<int64_t>(i) % width];
  run_and_wait(stream, BiasForward{y, bias});
  EXPECT_LT(relative_error(y, expected), tolerance<T>(2e-7, 1e-15)) << width;
  EXPECT_TRUE(y.padding_intact());
}

TEST(Bias, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (int64_t padding : {0, 3})
      for_dtypes<float, double, BFloat16>([&](auto type) { check_forward<decltype(type)>(width, padding); });
}

template <class T>
void check_backward(int64_t tokens, int64_t width, int64_t padding) {
  Stream stream = test_stream(2);
  const OwnedTensor dy = random_normal<T>({tokens, width}, 1, 1, 0, padding),
                    d_bias = random_normal<Wide<T>>({width}, 2);
  std::vector<double> expected = values(d_bias);  // it accumulates
  for (int64_t i = 0; i < tokens * width; ++i) expected[static_cast<size_t>(i % width)] += dy[i];
  run_and_wait(stream, BiasBackward{dy, d_bias});
  EXPECT_LT(relative_error(d_bias, expected), tolerance<Wide<T>>(1e-6, 1e-14)) << tokens << " x " << width;
}

TEST(Bias, BackwardEqualsItsDefinition) {
  for (int64_t tokens : {1, 31, 70})
    for (int64_t width : {1, 7, 65, 704})
      for (int64_t padding : {0, 3})
        for_dtypes<float, double, BFloat16>(
            [&](auto type) { check_backward<decltype(type)>(tokens, width, padding); });
}

template <class T>
void check_gradient(int64_t tokens, int64_t width) {
  Stream stream = test_stream(2);
  const OwnedTensor x = random_normal<T>({tokens, width}, 1), bias = random_normal<T>({width}, 2);
  const OwnedTensor dy = random_normal<T>({tokens, width}, 3), d_bias = zeros<T>({width});
  run_and_wait(stream, BiasBackward{dy, d_bias});
  auto f = [&] {
    const OwnedTensor y = clone(x);
    run_and_wait(stream, BiasForward{y, bias});
    return dot(y, dy);
  };
  EXPECT_LT(gradcheck(f, bias, d_bias), 1e-7);
}

TEST(Bias, BackwardIsTheGradient) {
  for_dtypes<double>([](auto type) {
    check_gradient<decltype(type)>(70, 7);
    check_gradient<decltype(type)>(3, 65);
  });
}

template <class T>
void check_threads() {
  std::vector<OwnedTensor> sums;
  for (int num_threads : {1, 2, 3}) {
    Stream stream = test_stream(num_threads);
    const OwnedTensor dy = random_normal<T>({500, 33}, 2);
    sums.push_back(random_normal<Wide<T>>({33}, 3));
    run_and_wait(stream, BiasBackward{dy, sums.back()});
    EXPECT_TRUE(same_bits(sums.front(), sums.back()));
  }
}

TEST(Bias, AnyNumberOfThreadsGivesTheSameBits) {
  for_dtypes<float, BFloat16>([](auto type) { check_threads<decltype(type)>(); });
}

}  // namespace
}  // namespace transxssm
