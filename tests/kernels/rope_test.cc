#include "kernels/rope.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

constexpr int64_t kPositions = 50;

template <class T>
struct Case {
  explicit Case(int64_t tokens, int64_t heads, int64_t width, int64_t padding = 0)
      : x(random_normal<T>({tokens, heads, width}, 1, 1, 0, padding)),
        cos(zeros<Wide<T>>({kPositions, width / 2}, padding)),
        sin(zeros<Wide<T>>({kPositions, width / 2}, padding)),
        position(random_integers<int32_t>({tokens}, 2, 0, kPositions)),
        scale(random_normal<Wide<T>>({tokens}, 3, 0.1, 1.5)) {
    for (int64_t p = 0; p < kPositions; ++p)
      for (int64_t j = 0; j < width / 2; ++j) {
        const double angle = static_cast<double>(p) *
                             std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(width));
        set(cos, p * (width / 2) + j, std::cos(angle));
        set(sin, p * (width / 2) + j, std::sin(angle));
      }
  }
  Rotary args(RotaryDirection direction = RotaryDirection::forward) const {
    return {.x = x, .cos = cos, .sin = sin, .position = position, .scale = scale, .direction = direction};
  }
  OwnedTensor x, cos, sin, position, scale;
};

template <class T>
void check(int64_t heads, int64_t width, int64_t padding, bool scaled, RotaryDirection direction) {
  Stream stream = test_stream(2);
  const int64_t tokens = 11;
  const Case<T> c(tokens, heads, width, padding);
  const std::vector<double> before = values(c.x);
  Rotary args = c.args(direction);
  if (!scaled) args.scale = Tensor();
  run_and_wait(stream, args);
  std::vector<double> expected(before.size());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t j = 0; j < width / 2; ++j) {
        const auto first = static_cast<size_t>((t * heads + h) * width + j),
                   second = first + static_cast<size_t>(width / 2);
        const double frequency =
            std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(width));
        const double angle = c.position[t] * frequency * (direction == RotaryDirection::forward ? 1 : -1);
        const double factor = scaled ? c.scale[t] : 1;
        expected[first] = factor * (before[first] * std::cos(angle) - before[second] * std::sin(angle));
        expected[second] = factor * (before[second] * std::cos(angle) + before[first] * std::sin(angle));
      }
  EXPECT_LT(relative_error(c.x, expected), tolerance<T>(1e-6, 1e-14)) << heads << " x " << width;
  EXPECT_TRUE(c.x.padding_intact());
}

TEST(Rotary, EqualsItsDefinition) {
  for (int64_t width : {2, 14, 64, 126, 130})
    for (bool scaled : {false, true})
      for (RotaryDirection direction : {RotaryDirection::forward, RotaryDirection::backward})
        for_dtypes<float, double, BFloat16>([&](auto type) {
          check<decltype(type)>(3, width, 0, scaled, direction);
          check<decltype(type)>(1, width, 5, scaled, direction);
        });
}

// The q heads of a fused [T, 3 H d] projection: rows far apart.
template <class T>
void check_fused_projection() {
  Stream stream = test_stream();
  const int64_t tokens = 6, heads = 2, width = 16;
  const Case<T> c(tokens, heads, width);
  const OwnedTensor fused = random_normal<T>({tokens, 3 * heads * width}, 9), before = clone(fused);
  const Tensor q = fused.view().slice(1, heads * width, heads * width).reshape({tokens, heads, width});
  copy(q, c.x);
  Rotary args = c.args();
  run_and_wait(stream, args);
  args.x = q;
  run_and_wait(stream, args);
  EXPECT_TRUE(same_bits(q, c.x));
  for (int64_t side : {int64_t{0}, 2 * heads * width})
    EXPECT_TRUE(
        same_bits(fused.view().slice(1, side, heads * width), before.view().slice(1, side, heads * width)));
}

TEST(Rotary, HeadsInsideAFusedProjection) {
  for_dtypes<float, BFloat16>([](auto type) { check_fused_projection<decltype(type)>(); });
}

template <class T>
void check_transpose() {
  Stream stream = test_stream(2);
  const Case<T> c(9, 2, 10), other(9, 2, 10);
  const OwnedTensor y = random_normal<T>({9, 2, 10}, 7), rotated_y = clone(y), x = clone(c.x);
  run_and_wait(stream, c.args());
  Rotary back = other.args(RotaryDirection::backward);
  back.x = rotated_y;
  run_and_wait(stream, back);
  EXPECT_NEAR(dot(c.x, y), dot(x, rotated_y), 1e-12);
}

TEST(Rotary, BackwardIsTheTranspose) {
  for_dtypes<double>([](auto type) { check_transpose<decltype(type)>(); });
}

template <class T>
void check_threads() {
  Stream one = test_stream(1), three = test_stream(3);
  const Case<T> a(1000, 3, 24), b(1000, 3, 24);
  run_and_wait(one, a.args());
  run_and_wait(three, b.args());
  EXPECT_TRUE(same_bits(a.x, b.x));
}

TEST(Rotary, AnyNumberOfThreadsGivesTheSameBits) {
  for_dtypes<float, BFloat16>([](auto type) { check_threads<decltype(type)>(); });
}

TEST(Rotary, RefusesAPositionBeyondTheTable) {
  if (!on_cpu()) GTEST_SKIP() << "positions are in the device's memory";
  Stream stream = test_stream();
  const Case<float> c(3, 1, 4);
  set(c.position, 1, static_cast<double>(kPositions));
  EXPECT_THROW(run(stream, c.args()), InternalError);
}

}  // namespace
}  // namespace transxssm
