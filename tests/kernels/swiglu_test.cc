#include "kernels/swiglu.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

double silu(double x) {
  return x / (1 + std::exp(-x));
}

// silu'(x), from the derivative of its two factors.
double silu_slope(double x) {
  const double s = 1 / (1 + std::exp(-x));
  return s + x * s * (1 - s);
}

template <class T>
void check_forward(int64_t width, int64_t padding) {
  Stream stream = test_stream(2);
  const OwnedTensor gate = random_normal<T>({9, width}, 1, 3, 0, padding), y = zeros<T>({9, width}, padding);
  const OwnedTensor up = random_normal<T>({9, width}, 2, 1, 0, padding);
  run_and_wait(stream, SwigluForward{gate, up, y});
  std::vector<double> expected;
  for (int64_t i = 0; i < 9 * width; ++i) expected.push_back(silu(gate[i]) * up[i]);
  EXPECT_LT(relative_error(y, expected), tolerance<T>(1e-6, 1e-14)) << width;
  EXPECT_TRUE(y.padding_intact());
}

template <class T>
void check_backward(int64_t width, int64_t padding) {
  Stream stream = test_stream(2);
  const Shape shape{9, width};
  const OwnedTensor gate = random_normal<T>(shape, 1, 3, 0, padding),
                    up = random_normal<T>(shape, 2, 1, 0, padding);
  const OwnedTensor dy = random_normal<T>(shape, 3, 1, 0, padding), y = zeros<T>(shape, padding);
  const OwnedTensor d_gate = zeros<T>(shape, padding), d_up = zeros<T>(shape, padding);
  run_and_wait(stream, SwigluBackward{gate, up, dy, d_gate, d_up, y});
  std::vector<double> expected_y, expected_gate, expected_up;
  for (int64_t i = 0; i < 9 * width; ++i) {
    expected_y.push_back(silu(gate[i]) * up[i]);
    expected_gate.push_back(dy[i] * up[i] * silu_slope(gate[i]));
    expected_up.push_back(dy[i] * silu(gate[i]));
  }
  EXPECT_LT(relative_error(y, expected_y), tolerance<T>(1e-6, 1e-14)) << width;
  EXPECT_LT(relative_error(d_gate, expected_gate), tolerance<T>(1e-6, 1e-14)) << width;
  EXPECT_LT(relative_error(d_up, expected_up), tolerance<T>(1e-6, 1e-14)) << width;
  EXPECT_TRUE(y.padding_intact() && d_gate.padding_intact() && d_up.padding_intact());
}

TEST(Swiglu, EqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (int64_t padding : {0, 3})
      for_dtypes<float, double, BFloat16>([&](auto type) {
        check_forward<decltype(type)>(width, padding);
        check_backward<decltype(type)>(width, padding);
      });
}

template <class T>
void check_large_gates() {
  Stream stream = test_stream();
  const std::vector<double> gates = {-1e30, -1000, -200, -104, -88, -50, 0, 50, 88, 104, 200, 1000, 1e30};
  const auto count = static_cast<int64_t>(gates.size());
  const OwnedTensor gate = zeros<T>({1, count}), up = filled<T>({1, count}, 1), dy = filled<T>({1, count}, 1);
  const OwnedTensor y = zeros<T>({1, count}), d_gate = zeros<T>({1, count}), d_up = zeros<T>({1, count});
  for (int64_t i = 0; i < count; ++i) set(gate, i, gates[static_cast<size_t>(i)]);
  run(stream, SwigluForward{gate, up, y});
  run_and_wait(stream, SwigluBackward{gate, up, dy, d_gate, d_up, {}});
  for (int64_t i = 0; i < count; ++i) {
    const double g = gate[i], expected = g < -700 ? 0 : silu(g);
    const double bound = tolerance<T>(1e-6, 1e-6) * std::abs(expected) + 1e-30 * std::max(1.0, std::abs(g));
    EXPECT_NEAR(y[i], expected, bound) << g;
    EXPECT_NEAR(d_up[i], expected, bound) << g;
    if (std::abs(g) <= 20 && g != 0) continue;
    EXPECT_NEAR(d_gate[i], g < 0 ? 0 : g > 0 ? 1 : 0.5, 1e-6) << g;
  }
  const OwnedTensor nan = filled<T>({1, 1}, std::numeric_limits<double>::quiet_NaN()),
                    one = filled<T>({1, 1}, 1), result = zeros<T>({1, 1});
  run_and_wait(stream, SwigluForward{nan, one, result});
  EXPECT_TRUE(std::isnan(result[0])) << "a NaN is not hidden";
}

TEST(Swiglu, LargeGates) {
  for_dtypes<float, double, BFloat16>([](auto type) { check_large_gates<decltype(type)>(); });
}

template <class T>
void check_gradient(int64_t width) {
  Stream stream = test_stream(2);
  const Shape shape{5, width};
  const OwnedTensor gate = random_normal<T>(shape, 1, 2, 0, 1), up = random_normal<T>(shape, 2, 1, 0, 2);
  const OwnedTensor dy = random_normal<T>(shape, 3, 1, 0, 3), y = zeros<T>(shape), again = zeros<T>(shape);
  const OwnedTensor d_gate = zeros<T>(shape, 1), d_up = zeros<T>(shape, 2);
  run(stream, SwigluForward{gate, up, y});
  run_and_wait(stream, SwigluBackward{gate, up, dy, d_gate, d_up, again});
  EXPECT_LT(relative_error(again, y), 1e-15);
  auto f = [&] {
    run_and_wait(stream, SwigluForward{gate, up, y});
    return dot(y, dy);
  };
  EXPECT_LT(gradcheck(f, gate, d_gate), 1e-7);
  EXPECT_LT(gradcheck(f, up, d_up), 1e-7);
  EXPECT_TRUE(d_gate.padding_intact() && d_up.padding_intact());
}

TEST(Swiglu, BackwardIsTheGradient) {
  for (int64_t width : {7, 65}) for_dtypes<double>([&](auto type) { check_gradient<decltype(type)>(width); });
}

template <class T>
void check_in_place() {
  const Shape shape{300, 65};
  const OwnedTensor gate = random_normal<T>(shape, 1), up = random_normal<T>(shape, 2);
  const OwnedTensor dy = random_normal<T>(shape, 3), y = zeros<T>(shape);
  const OwnedTensor d_gate = zeros<T>(shape), d_up = zeros<T>(shape);
  Stream one = test_stream(1), three = test_stream(3);
  run_and_wait(one, SwigluBackward{gate, up, dy, d_gate, d_up, y});
  run_and_wait(three, SwigluBackward{gate, up, dy, gate, up, dy});
  EXPECT_TRUE(same_bits(gate, d_gate) && same_bits(up, d_up) && same_bits(dy, y));
}

TEST(Swiglu, OutputsMayReplaceInputsOnAnyNumberOfThreads) {
  for_dtypes<float, BFloat16>([](auto type) { check_in_place<decltype(type)>(); });
}

}  // namespace
}  // namespace transxssm
