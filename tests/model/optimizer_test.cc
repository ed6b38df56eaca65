// One step of the optimizer by its definition, and the learning rate of every step.
#include "model/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "parallel/local.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

class OptimizerTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const Shape& shape : {Shape{3, 5}, Shape{7}})
      store_.declare(
          {.name = shape.rank() == 2 ? "matrix" : "vector", .global_shape = shape, .box = whole_box(shape)});
    store_.allocate(true);
    const Rng rng(1, "optimizer");
    uint64_t draws = 0;
    for (const Parameter& p : store_.all()) {
      for (const Tensor& tensor : {p.weight, p.gradient, p.exp_avg})
        for (int64_t i = 0; i < tensor.num_elements(); ++i)
          tensor.data<float>()[i] = static_cast<float>(rng.normal(draws++));
      for (int64_t i = 0; i < p.exp_avg_sq.num_elements(); ++i)
        p.exp_avg_sq.data<float>()[i] = static_cast<float>(rng.uniform(draws++));
    }
  }

  // Updates with the given norm as the gradients' and compares every number with AdamW's definition.
  void check(const OptimizerOptions& options, double norm, double scale) {
    constexpr double kLearningRate = 0.1;
    constexpr int64_t kStep = 3;
    struct Expected {
      float *weight, *exp_avg, *exp_avg_sq;
      double w = 0, m = 0, v = 0;
    };
    std::vector<Expected> expected;
    for (const Parameter& p : store_.all()) {
      const double decay = p.spec.name == "matrix" ? options.weight_decay : 0;
      for (int64_t i = 0; i < p.num_elements(); ++i) {
        Expected e{p.weight.data<float>() + i, p.exp_avg.data<float>() + i, p.exp_avg_sq.data<float>() + i};
        const double g = p.gradient.data<float>()[i] * scale;
        e.m = options.beta1 * *e.exp_avg + (1 - options.beta1) * g;
        e.v = options.beta2 * *e.exp_avg_sq + (1 - options.beta2) * g * g;
        const double mean = e.m / (1 - std::pow(options.beta1, kStep));
        const double root = std::sqrt(e.v / (1 - std::pow(options.beta2, kStep)));
        e.w = *e.weight - kLearningRate * (mean / (root + options.eps) + decay * *e.weight);
        expected.push_back(e);
      }
    }
    const auto world = single_rank();
    Mesh mesh(*world, {});
    Optimizer(stream_, store_, mesh, options).update(kLearningRate, norm, kStep);
    for (const Expected& e : expected) {
      EXPECT_NEAR(*e.weight, e.w, 1e-5 * (1 + std::abs(e.w)));
      EXPECT_NEAR(*e.exp_avg, e.m, 1e-6);
      EXPECT_NEAR(*e.exp_avg_sq, e.v, 1e-6);
    }
  }

  Stream stream_{1};
  ParameterStore store_;
};

constexpr OptimizerOptions kOptions = {
    .beta1 = 0.7, .beta2 = 0.9, .eps = 1e-2, .weight_decay = 0.3, .clip_norm = 2};

TEST_F(OptimizerTest, DecaysMatricesOnly) {
  check(kOptions, 1.5, 1);
}

TEST_F(OptimizerTest, ClipsAboveTheNorm) {
  check(kOptions, 8, 2 / (8 + 1e-6));
}

// As torch.nn.utils.clip_grad_norm_ has it; seen only where the norm is as small.
TEST_F(OptimizerTest, ClippingAddsItsEpsilonToTheNorm) {
  OptimizerOptions options = kOptions;
  options.clip_norm = 1e-6;
  check(options, 2e-6, 1.0 / 3);
}

TEST_F(OptimizerTest, ZeroDoesNotClip) {
  OptimizerOptions options = kOptions;
  options.clip_norm = 0;
  check(options, 8, 1);
}

TEST_F(OptimizerTest, NormOfAllGradients) {
  double squares = 0;
  for (const Parameter& p : store_.all())
    for (int64_t i = 0; i < p.num_elements(); ++i)
      squares += std::pow(static_cast<double>(p.gradient.data<float>()[i]), 2);
  const auto world = single_rank();
  Mesh mesh(*world, {});
  EXPECT_NEAR(Optimizer(stream_, store_, mesh, kOptions).gradient_norm(), std::sqrt(squares), 1e-6);
}

// A product after each way to change a weight is one with the new weight.
TEST(PackedCopies, FollowTheWeights) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Stream stream(2);
    ParameterStore store(dtype);
    const Shape shape = {40, 24};
    const int parameter = store.declare({.name = "matrix", .global_shape = shape, .box = whole_box(shape)});
    const int whole = store.declare_linear({.first = parameter, .forward = false});
    const int part = store.declare_linear({.first = parameter, .first_row = 7, .num_rows = 33});
    store.allocate(true);
    const Parameter& p = store[parameter];
    Arena arena(1 << 16);
    Carver carver = arena.carver();
    const Tensor x = carver.take(dtype, {3, 24}), y = carver.take(dtype, {3, 33}),
                 dy = carver.take(dtype, {3, 40}), dx = carver.take(dtype, {3, 24});
    const auto element = [](const Tensor& tensor, int64_t i, int64_t j) {
      return tensor.dtype() == DType::f32 ? tensor.at<float>({i, j}) : to_float(tensor.at<BFloat16>({i, j}));
    };
    for (const Tensor& tensor : {x, dy})
      for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < tensor.size(1); ++j) {
          const auto value = static_cast<float>((i * 7 + j * 3) % 5 - 2);
          if (dtype == DType::f32)
            tensor.at<float>({i, j}) = value;
          else
            tensor.at<BFloat16>({i, j}) = to_bfloat16(value);
        }
    const auto check = [&](const char* after) {
      store.linear(part).forward(stream, x, y);
      store.linear(whole).backward_input(stream, dy, dx);
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t o = 0; o < 33; ++o) {
          double sum = 0;
          for (int64_t j = 0; j < 24; ++j) sum += element(x, i, j) * element(p.operand, o + 7, j);
          EXPECT_NEAR(element(y, i, o), sum, 1e-5 + 8e-3 * std::abs(sum)) << after;
        }
        for (int64_t j = 0; j < 24; ++j) {
          double sum = 0;
          for (int64_t o = 0; o < 40; ++o) sum += element(dy, i, o) * element(p.operand, o, j);
          EXPECT_NEAR(element(dx, i, j), sum, 1e-5 + 8e-3 * std::abs(sum)) << after;
        }
      }
    };
    store.initialise(stream, 1, 1);
    check("initialisation");
    for (int64_t i = 0; i < p.num_elements(); ++i) {
      p.weight.data<float>()[i] = static_cast<float>(i % 11 - 5);
      p.gradient.data<float>()[i] = static_cast<float>(i % 3 - 1);
    }
    store.refresh_operands(stream);
    check("a load");
    const auto world = single_rank();
    Mesh mesh(*world, {});
    Optimizer(stream, store, mesh, kOptions).update(0.5, 1, 1);
    check("a step of the optimizer");
    store.initialise(stream, 2, 1);
    check("another initialisation");
  }
}

// What the plan says is what is allocated, and other devices and inference have none.
TEST(PackedCopies, AreCounted) {
  ParameterStore store(DType::f32);
  const Shape shape = {40, 24};
  store.declare_linear(
      {.first = store.declare({.name = "m", .global_shape = shape, .box = whole_box(shape)})});
  const int64_t padded = (64 * 24 + 32 * 40) * 4, bytes = store.packed_bytes(Device{});
  EXPECT_TRUE(bytes == padded || bytes == 0) << bytes;
  EXPECT_EQ(store.packed_bytes(Device{DeviceKind::cuda, 0}), 0);
  store.allocate(false);
  EXPECT_TRUE(store.linear(0).packed_forward->memory.empty());
  store.allocate(true);
  EXPECT_EQ(store.linear(0).packed_forward->memory.num_bytes() +
                store.linear(0).packed_backward->memory.num_bytes(),
            bytes);
}

TEST(LearningRate, WarmsUpAndDecaysToItsFraction) {
  LearningRateSchedule rate{.peak = 8, .min_fraction = 0.25, .warmup_tokens = 4, .end_tokens = 12};
  EXPECT_DOUBLE_EQ(rate.at(1), 2);
  EXPECT_DOUBLE_EQ(rate.at(4), 8);
  EXPECT_DOUBLE_EQ(rate.at(6), 2 + 6 * 0.5 * (1 + std::sqrt(0.5)));
  EXPECT_DOUBLE_EQ(rate.at(8), 5);
  EXPECT_DOUBLE_EQ(rate.at(12), 2);
  EXPECT_DOUBLE_EQ(rate.at(100), 2);
  rate.kind = LearningRateKind::linear;
  EXPECT_DOUBLE_EQ(rate.at(3), 6);
  EXPECT_DOUBLE_EQ(rate.at(6), 6.5);
  EXPECT_DOUBLE_EQ(rate.at(12), 2);
  rate.kind = LearningRateKind::constant;
  EXPECT_DOUBLE_EQ(rate.at(2), 4);
  EXPECT_DOUBLE_EQ(rate.at(11), 8);
}

// In tokens or in steps: for steps of one size the same bits as the formulas of a schedule by steps.
TEST(LearningRate, ByTokensHasTheBitsOfStepsOfOneSize) {
  for (const int64_t steps : {1, 2, 7, 100, 997}) {
    for (const int64_t warmup : {int64_t{0}, (steps + 9) / 10, steps}) {
      for (const int64_t unit : {1, 128, 1000003}) {
        const double peak = 3e-4, low = 0.1;
        LearningRateSchedule rate{.peak = peak,
                                  .min_fraction = low,
                                  .warmup_tokens = warmup * unit,
                                  .end_tokens = steps * unit,
                                  .unit = unit};
        for (int64_t step = 1; step <= steps; ++step) {
          const auto warm = static_cast<double>(warmup), at = static_cast<double>(step);
          const double progress =
              std::min(1.0, (at - warm) / std::max(1.0, static_cast<double>(steps) - warm));
          const bool warming = step <= warmup;
          rate.kind = LearningRateKind::cosine;
          EXPECT_EQ(rate.at(step * unit),
                    warming ? peak * at / warm
                            : peak * (low + (1 - low) * 0.5 * (1 + std::cos(std::numbers::pi * progress))));
          rate.kind = LearningRateKind::linear;
          EXPECT_EQ(rate.at(step * unit), warming ? peak * at / warm : peak * (1 - (1 - low) * progress));
        }
      }
    }
  }
}

// Between the steps it was settled in, and where the warm-up is longer than the run.
TEST(LearningRate, HasNoJumpsBetweenSteps) {
  LearningRateSchedule rate{
      .peak = 1, .min_fraction = 0, .warmup_tokens = 400, .end_tokens = 1200, .unit = 100};
  EXPECT_DOUBLE_EQ(rate.at(50), 0.125);
  EXPECT_DOUBLE_EQ(rate.at(800), 0.5);
  EXPECT_NEAR(rate.at(401), 1, 1e-5);
  rate.end_tokens = 200;
  EXPECT_DOUBLE_EQ(rate.at(300), 0.75);
  EXPECT_DOUBLE_EQ(rate.at(401), 0);
}

}  // namespace
}  // namespace transxssm
