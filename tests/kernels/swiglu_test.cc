#include "kernels/swiglu.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

double silu(double x) {
  return x / (1 + std::exp(-x));
}

template <class T>
void check_forward(int64_t width, int64_t padding) {
  Stream stream(2);
  const OwnedTensor gate = random_normal<T>({9, width}, 1, 3, 0, padding), y = zeros<T>({9, width}, padding);
  const OwnedTensor up = random_normal<T>({9, width}, 2, 1, 0, padding);
  run(stream, SwigluForward{gate, up, y});
  std::vector<double> expected;
  for (int64_t i = 0; i < 9 * width; ++i) expected.push_back(silu(gate[i]) * up[i]);
  EXPECT_LT(relative_error(y, expected), sizeof(T) == 4 ? 1e-6 : 1e-14);
  EXPECT_TRUE(y.padding_intact());
}

TEST(Swiglu, ForwardEqualsItsDefinition) {
  for (int64_t width : {1, 7, 63, 65, 704})
    for (int64_t padding : {0, 3}) {
      check_forward<float>(width, padding);
      check_forward<double>(width, padding);
    }
}

TEST(Swiglu, LargeGates) {
  Stream stream;
  const std::vector<double> gates = {-1e30, -1000, -200, -104, -88, -50, 0, 50, 88, 104, 200, 1000, 1e30};
  const auto count = static_cast<int64_t>(gates.size());
  for (const OwnedTensor& gate : {zeros<float>({1, count}), zeros<double>({1, count})}) {
    const DType dtype = gate.view().dtype();
    const OwnedTensor up(dtype, {1, count}), y(dtype, {1, count}), dy(dtype, {1, count});
    for (int64_t i = 0; i < count; ++i)
      set(gate, i, gates[static_cast<size_t>(i)]), set(up, i, 1), set(dy, i, 1);
    const OwnedTensor d_gate(dtype, {1, count}), d_up(dtype, {1, count});
    run(stream, SwigluForward{gate, up, y});
    run(stream, SwigluBackward{gate, up, dy, d_gate, d_up, {}});
    for (int64_t i = 0; i < count; ++i) {
      const double g = gates[static_cast<size_t>(i)], expected = g < -700 ? 0 : silu(g);
      const double tolerance = 1e-6 * std::abs(expected) + 1e-30 * std::max(1.0, std::abs(g));
      EXPECT_NEAR(y[i], expected, tolerance) << g;
      EXPECT_NEAR(d_up[i], expected, tolerance) << g;
      EXPECT_NEAR(d_gate[i], g < 0 ? (g < -20 ? 0 : d_gate[i]) : (g > 20 ? 1 : 0.5), 1e-6) << g;
    }
  }
  const OwnedTensor nan = filled<float>({1, 1}, std::numeric_limits<double>::quiet_NaN()),
                    one = filled<float>({1, 1}, 1);
  const OwnedTensor y = zeros<float>({1, 1});
  run(stream, SwigluForward{nan, one, y});
  EXPECT_TRUE(std::isnan(y[0])) << "a NaN is not hidden";
}

TEST(Swiglu, BackwardIsTheGradient) {
  Stream stream(2);
  for (int64_t width : {7, 65}) {
    const Shape shape{5, width};
    const OwnedTensor gate = random_normal<double>(shape, 1, 2, 0, 1),
                      up = random_normal<double>(shape, 2, 1, 0, 2);
    const OwnedTensor dy = random_normal<double>(shape, 3, 1, 0, 3), y = zeros<double>(shape),
                      again = zeros<double>(shape);
    const OwnedTensor d_gate = zeros<double>(shape, 1), d_up = zeros<double>(shape, 2);
    run(stream, SwigluForward{gate, up, y});
    run(stream, SwigluBackward{gate, up, dy, d_gate, d_up, again});
    EXPECT_LT(relative_error(again, y), 1e-15);
    auto f = [&] {
      run(stream, SwigluForward{gate, up, y});
      return dot(y, dy);
    };
    EXPECT_LT(gradcheck(f, gate, d_gate), 1e-7);
    EXPECT_LT(gradcheck(f, up, d_up), 1e-7);
    EXPECT_TRUE(d_gate.padding_intact() && d_up.padding_intact());
  }
}

TEST(Swiglu, OutputsMayReplaceInputsOnAnyNumberOfThreads) {
  const Shape shape{300, 65};
  const OwnedTensor gate = random_normal<float>(shape, 1), up = random_normal<float>(shape, 2);
  const OwnedTensor dy = random_normal<float>(shape, 3), y = zeros<float>(shape);
  const OwnedTensor d_gate = zeros<float>(shape), d_up = zeros<float>(shape);
  Stream one(1), three(3);
  run(one, SwigluBackward{gate, up, dy, d_gate, d_up, y});
  run(three, SwigluBackward{gate, up, dy, gate, up, dy});
  EXPECT_TRUE(same_bits(gate, d_gate) && same_bits(up, d_up) && same_bits(dy, y));
}

}  // namespace
}  // namespace transxssm
