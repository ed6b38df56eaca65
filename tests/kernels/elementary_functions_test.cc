// The exponential and the sigmoid inside operations, against the standard library's in f64, and the rounding
// to bf16 behind them.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/copy.h"
#include "kernels/cross_entropy.h"
#include "kernels/swiglu.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/support/tensors.h"

namespace transxssm {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// exp(x) of each element, as the gradient of logits that are not the target's.
template <class T>
OwnedTensor exponentials(const OwnedTensor& x) {
  Stream stream;
  const int64_t count = x.view().size(1);
  OwnedTensor y = clone(x);
  const OwnedTensor target = filled<int32_t>({1}, static_cast<int32_t>(count));
  const OwnedTensor max = zeros<Wide<T>>({1}), sum = filled<Wide<T>>({1}, 1);
  run(stream, CrossEntropyBackward{y, target, filled<uint8_t>({1}, 1), max, sum, filled<double>({1}, 1)});
  return y;
}

// x times the sigmoid of x.
template <class T>
OwnedTensor silus(const OwnedTensor& x) {
  Stream stream;
  const OwnedTensor up = filled<T>(x.view().shape(), 1);
  OwnedTensor y = zeros<T>(x.view().shape());
  run(stream, SwigluForward{x, up, y});
  return y;
}

double silu(double x) {
  return x / (1 + std::exp(-x));
}

// Every number of bf16.
OwnedTensor all_bf16() {
  OwnedTensor x = zeros<BFloat16>({1, 65536});
  for (int i = 0; i < 65536; ++i) x.view().data<BFloat16>()[i] = {static_cast<uint16_t>(i)};
  return x;
}

// Numbers of every exponent and sign, 1000 of each.
OwnedTensor every_exponent() {
  const int64_t each = 1000;
  OwnedTensor x = zeros<float>({1, 512 * each});
  const OwnedTensor fraction = random_integers<int32_t>({512 * each}, 1, 0, 1 << 23);
  for (int64_t i = 0; i < 512 * each; ++i) {
    const auto bits = static_cast<uint32_t>(i / each) << 23 | static_cast<uint32_t>(fraction[i]);
    x.view().data<float>()[i] = std::bit_cast<float>(bits);
  }
  return x;
}

// Distance of `got` to `expected`, in units of the last of `digits` binary digits; numbers below `least` may
// become zero, and those above `largest` infinity.
double units(double got, double expected, int digits, double least, double largest) {
  if (std::isnan(expected) || std::abs(expected) == kInfinity) {
    const bool alike = std::isnan(expected) ? std::isnan(got) : got == expected;
    return alike ? 0 : kInfinity;
  }
  if (std::abs(expected) < least) return std::abs(got) < 1.001 * least ? 0 : kInfinity;
  if (std::abs(got) == kInfinity && std::abs(expected) > largest) return 0;
  int exponent = 0;
  std::frexp(expected, &exponent);
  return std::abs(got - expected) / std::ldexp(1.0, exponent - digits);
}

double largest_units(const OwnedTensor& x, const OwnedTensor& y, double (*function)(double), int digits,
                     double least) {
  const double largest = digits == 8 ? 0x1.fep127 : 0x1.fffffcp127;
  double worst = 0, at = 0;
  for (int64_t i = 0; i < x.view().num_elements(); ++i) {
    const double u = units(y[i], function(x[i]), digits, least, largest);
    if (u > worst) worst = u, at = x[i];
  }
  EXPECT_LT(worst, kInfinity) << "at " << at;
  return worst;
}

template <class T>
void check_minus_infinity() {
  EXPECT_EQ(exponentials<T>(filled<T>({1, 33}, -kInfinity))[0], 0);
  EXPECT_EQ(exponentials<T>(filled<T>({1, 33}, -kInfinity))[32], 0);
}

TEST(ElementaryFunctions, ExponentialOfMinusInfinity) {
  for_instruction_sets(
      [] { for_dtypes<float, double, BFloat16>([](auto type) { check_minus_infinity<decltype(type)>(); }); });
}

// A correct rounding is half a unit from the exact result.
TEST(ElementaryFunctions, ExponentialOfEveryBf16Number) {
  for_instruction_sets([] {
    const OwnedTensor x = all_bf16();
    EXPECT_LT(largest_units(x, exponentials<BFloat16>(x), std::exp, 8, 0x1p-126), 0.505);
  });
}

TEST(ElementaryFunctions, SiluOfEveryBf16Number) {
  for_instruction_sets([] {
    const OwnedTensor x = all_bf16();
    for (int64_t i = 0; i < 65536; ++i)  // the sigmoid is bounded below, see LargeGates of Swiglu
      if (x[i] < -80) set(x, i, -80);
    EXPECT_LT(largest_units(x, silus<BFloat16>(x), silu, 8, 0x1p-126), 0.505);
  });
}

TEST(ElementaryFunctions, ExponentialOfF32) {
  for_instruction_sets([] {
    const OwnedTensor x = every_exponent();
    EXPECT_LT(largest_units(x, exponentials<float>(x), std::exp, 24, 0x1p-126), 2);
  });
}

TEST(ElementaryFunctions, ExponentialOfF32WhereItIsUsedMost) {
  for_instruction_sets([] {
    const OwnedTensor x = random_normal<float>({1, 300007}, 1, 20);
    EXPECT_LT(largest_units(x, exponentials<float>(x), std::exp, 24, 0x1p-126), 2);
  });
}

TEST(ElementaryFunctions, SiluOfF32) {
  for_instruction_sets([] {
    const OwnedTensor x = random_normal<float>({1, 300007}, 1, 20);
    for (int64_t i = 0; i < x.view().num_elements(); ++i)
      if (x[i] < -80) set(x, i, -80);
    EXPECT_LT(largest_units(x, silus<float>(x), silu, 24, 0x1p-126), 4);
  });
}

// Every upper half of a number, with lower halves at, beside and far from a tie.
TEST(ElementaryFunctions, RoundingToBf16) {
  const std::vector<uint32_t> halves = {0, 1, 0x4000, 0x7fff, 0x8000, 0x8001, 0xc000, 0xffff};
  const auto each = static_cast<int64_t>(halves.size());
  const OwnedTensor from = zeros<float>({65536 * each}), to = zeros<BFloat16>({65536 * each});
  float* x = from.view().data<float>();
  for (int64_t i = 0; i < 65536 * each; ++i)
    x[i] =
        std::bit_cast<float>(static_cast<uint32_t>(i / each) << 16 | halves[static_cast<size_t>(i % each)]);
  for_instruction_sets([&] {
    Stream stream;
    const BFloat16* y = to.view().data<BFloat16>();
    std::fill_n(to.view().data<BFloat16>(), 65536 * each, BFloat16{});
    run(stream, Copy{.from = from, .to = to});
    for (int64_t i = 0; i < 65536 * each; ++i)
      ASSERT_EQ(y[i].bits, to_bfloat16(x[i]).bits) << std::bit_cast<uint32_t>(x[i]);
  });
}

}  // namespace
}  // namespace transxssm
