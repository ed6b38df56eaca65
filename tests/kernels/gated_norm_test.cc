#include "kernels/gated_norm.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

// The tensors of one forward and backward.
template <class T>
struct Case {
  Case(int64_t num_tokens, int64_t num_groups, int64_t group_width, int64_t padding = 0)
      : tokens(num_tokens),
        groups(num_groups),
        width(num_groups * group_width),
        x(random_normal<T>({tokens, width}, 1, 1, 0.2, padding)),
        z(random_normal<T>({tokens, width}, 2, 2, 0, padding)),
        weight(random_normal<T>({width}, 3, 0.3, 1)),
        squares(zeros<T>({tokens, groups}, padding)),
        dots(zeros<T>({tokens, groups}, padding)),
        y(zeros<T>({tokens, width}, padding)),
        dy(random_normal<T>({tokens, width}, 4, 1, 0, padding)),
        dx(zeros<T>({tokens, width}, padding)),
        dz(zeros<T>({tokens, width}, padding)),
        d_weight(random_normal<T>({width}, 5)) {
    forward = {.x = x, .z = z, .weight = weight, .squares = squares, .group_width = group_width, .y = y};
    backward = {.x = x,
                .z = z,
                .weight = weight,
                .squares = squares,
                .dots = dots,
                .group_width = group_width,
                .dy = dy,
                .dx = dx,
                .dz = dz,
                .d_weight = d_weight};
  }
  void run_forward(Stream& stream) const {
    run(stream, GatedNormSquares{.x = x, .z = z, .squares = squares});
    run(stream, forward);
  }
  void run_backward(Stream& stream) const {
    run(stream, GatedNormDots{.x = x, .z = z, .weight = weight, .dy = dy, .dots = dots});
    run(stream, backward);
  }
  int64_t tokens, groups, width;
  OwnedTensor x, z, weight, squares, dots, y, dy, dx, dz, d_weight;
  GatedNormForward forward;
  GatedNormBackward backward;
};

template <class T>
void check_forward(int64_t groups, int64_t group_width, int64_t padding) {
  Stream stream(2);
  Case<T> c(9, groups, group_width, padding);
  c.forward.eps = 1e-2;
  c.run_forward(stream);
  c.run_backward(stream);
  std::vector<double> y, squares, dots;
  for (int64_t first = 0; first < c.tokens * c.width; first += group_width) {
    std::vector<double> v;
    double sum = 0, product = 0;
    for (int64_t i = first; i < first + group_width; ++i) {
      v.push_back(c.x[i] * c.z[i] / (1 + std::exp(-c.z[i])));
      sum += v.back() * v.back();
      product += c.dy[i] * c.weight[i % c.width] * v.back();
    }
    squares.push_back(sum);
    dots.push_back(product);
    for (int64_t i = 0; i < group_width; ++i)
      y.push_back(v[static_cast<size_t>(i)] / std::sqrt(sum / static_cast<double>(group_width) + 1e-2) *
                  c.weight[(first + i) % c.width]);
  }
  const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-14;
  EXPECT_LT(relative_error(c.y, y), tolerance) << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.squares, squares), tolerance) << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.dots, dots), tolerance) << groups << " groups of " << group_width;
  EXPECT_TRUE(c.y.padding_intact() && c.squares.padding_intact() && c.dots.padding_intact());
}

TEST(GatedNorm, ForwardEqualsItsDefinition) {
  for (int64_t group_width : {1, 7, 63, 65, 352})
    for (int64_t groups : {1, 3})
      for (int64_t padding : {0, 3}) {
        check_forward<float>(groups, group_width, padding);
        check_forward<double>(groups, group_width, padding);
      }
}

TEST(GatedNorm, BackwardIsTheGradient) {
  Stream stream(2);
  for (auto [tokens, groups, group_width] :
       {std::array<int64_t, 3>{70, 1, 9}, {40, 3, 5}, {4, 2, 35}, {3, 4, 1}}) {
    Case<double> c(tokens, groups, group_width, 2);
    c.forward.eps = c.backward.eps = 0.1;  // large enough to matter
    zero(c.d_weight);
    c.run_forward(stream);
    c.run_backward(stream);
    const auto f = [&] {
      c.run_forward(stream);
      return dot(c.y, c.dy);
    };
    EXPECT_LT(gradcheck(f, c.x, c.dx), 1e-7) << groups << " groups of " << group_width;
    EXPECT_LT(gradcheck(f, c.z, c.dz), 1e-7) << groups << " groups of " << group_width;
    EXPECT_LT(gradcheck(f, c.weight, c.d_weight), 1e-7) << groups << " groups of " << group_width;
    EXPECT_TRUE(c.dx.padding_intact() && c.dz.padding_intact());
  }
}

// Two groups, each split in two halves on "ranks" of their own that only share sums.
TEST(GatedNorm, HalvesOfGroupsEqualTheWhole) {
  Stream stream;
  const int64_t tokens = 40, group_width = 34, half = group_width / 2;
  const Case<double> whole(tokens, 2, group_width);
  whole.run_forward(stream);
  whole.run_backward(stream);
  const Case<double> split(tokens, 2, group_width);
  const OwnedTensor squares[2] = {zeros<double>({tokens, 1}), zeros<double>({tokens, 1})};
  const OwnedTensor dots[2] = {zeros<double>({tokens, 1}), zeros<double>({tokens, 1})};
  for (int64_t group = 0; group < 2; ++group) {
    const auto part = [&](const Tensor& tensor, int64_t rank) {
      return tensor.slice(tensor.rank() - 1, group * group_width + rank * half, half);
    };
    const auto add = [&](const OwnedTensor(&sums)[2]) {
      for (int64_t t = 0; t < tokens; ++t) {
        const double sum = sums[0][t] + sums[1][t];
        set(sums[0], t, sum), set(sums[1], t, sum);
      }
    };
    for (int64_t rank : {0, 1})
      run(stream, GatedNormSquares{part(split.x, rank), part(split.z, rank), squares[rank]});
    add(squares);
    for (int64_t rank : {0, 1}) {
      run(stream, GatedNormForward{.x = part(split.x, rank),
                                   .z = part(split.z, rank),
                                   .weight = part(split.weight, rank),
                                   .squares = squares[rank],
                                   .group_width = group_width,
                                   .y = part(split.y, rank)});
      run(stream, GatedNormDots{.x = part(split.x, rank),
                                .z = part(split.z, rank),
                                .weight = part(split.weight, rank),
                                .dy = part(split.dy, rank),
                                .dots = dots[rank]});
    }
    add(dots);
    for (int64_t rank : {0, 1})
      run(stream, GatedNormBackward{.x = part(split.x, rank),
                                    .z = part(split.z, rank),
                                    .weight = part(split.weight, rank),
                                    .squares = squares[rank],
                                    .dots = dots[rank],
                                    .group_width = group_width,
                                    .dy = part(split.dy, rank),
                                    .dx = part(split.dx, rank),
                                    .dz = part(split.dz, rank),
                                    .d_weight = part(split.d_weight, rank)});
  }
  EXPECT_LT(relative_error(split.y, whole.y), 1e-14);
  EXPECT_LT(relative_error(split.dx, whole.dx), 1e-14);
  EXPECT_LT(relative_error(split.dz, whole.dz), 1e-14);
  EXPECT_LT(relative_error(split.d_weight, whole.d_weight), 1e-14);
}

TEST(GatedNorm, FloatGradientsEqualThoseInDouble) {
  Stream stream(2);
  const Case<double> exact(100, 2, 75);
  const Case<float> rounded(100, 2, 75);
  exact.run_forward(stream), exact.run_backward(stream);
  rounded.run_forward(stream), rounded.run_backward(stream);
  EXPECT_LT(relative_error(rounded.dx, exact.dx), 2e-6);
  EXPECT_LT(relative_error(rounded.dz, exact.dz), 2e-6);
  EXPECT_LT(relative_error(rounded.d_weight, exact.d_weight), 2e-6);
}

TEST(GatedNorm, WeightGradientsAccumulate) {
  Stream stream;
  const Case<double> c(70, 2, 33);
  c.run_forward(stream);
  const OwnedTensor before = clone(c.d_weight);
  c.run_backward(stream);
  const OwnedTensor once = clone(c.d_weight);
  c.run_backward(stream);
  for (int64_t i = 0; i < 66; ++i) EXPECT_NEAR(c.d_weight[i] - once[i], once[i] - before[i], 1e-12);
  EXPECT_GT(relative_error(once, before), 0.1);
}

TEST(GatedNorm, InputGradientMayReplaceOutputGradientOnAnyNumberOfThreads) {
  Stream one(1);
  const Case<float> a(200, 3, 65);
  a.run_forward(one);
  a.run_backward(one);
  for (int num_threads : {1, 2, 3, 5}) {
    Stream many(num_threads);
    Case<float> b(200, 3, 65);
    b.backward.dx = b.dy;
    b.run_forward(many);
    b.run_backward(many);
    EXPECT_TRUE(same_bits(a.squares, b.squares) && same_bits(a.dots, b.dots)) << num_threads << " threads";
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dy) && same_bits(a.dz, b.dz)) << num_threads;
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight)) << num_threads;
  }
}

TEST(GatedNorm, LargeGatesAndNans) {
  Stream stream;
  const double gates[] = {-1e30, -1000, -100, 0, 100, 1000};
  const Case<float> c(6, 1, 65);
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t i = 0; i < 65; ++i) set(c.x, t * 65 + i, 1), set(c.z, t * 65 + i, gates[t]);
  c.run_forward(stream);
  c.run_backward(stream);
  for (int64_t t = 0; t < 6; ++t) {
    EXPECT_NEAR(c.y[t * 65] / c.weight[0], gates[t] > 0 ? 1 : 0, 1e-4) << gates[t];
    EXPECT_TRUE(std::isfinite(c.dx[t * 65]) && std::isfinite(c.dz[t * 65])) << gates[t];
  }
  for (const OwnedTensor* poisoned : {&c.x, &c.z}) {
    const Case<float> n(2, 1, 65);
    set(poisoned == &c.x ? n.x : n.z, 3, std::numeric_limits<double>::quiet_NaN());
    n.run_forward(stream);
    n.run_backward(stream);
    EXPECT_TRUE(std::isnan(n.y[0]) && std::isnan(n.dx[0]) && std::isnan(n.dz[0])) << "a NaN is not hidden";
    EXPECT_TRUE(std::isnan(n.y[3]) && std::isnan(n.dx[3]) && std::isnan(n.dz[3]));
    EXPECT_FALSE(std::isnan(n.y[65]) || std::isnan(n.dx[65]));
  }
}

TEST(GatedNorm, RefusesGroupsThatDoNotDivideTheChannels) {
  Stream stream;
  const Case<float> c(2, 1, 65);
  const OwnedTensor squares = zeros<float>({2, 2});
  EXPECT_THROW(run(stream, GatedNormSquares{c.x, c.z, squares}), InternalError);
  GatedNormForward args = c.forward;
  args.group_width = 64;
  EXPECT_THROW(run(stream, args), InternalError);
  args.group_width = 0;
  EXPECT_THROW(run(stream, args), InternalError) << "not given";
}

}  // namespace
}  // namespace transxssm
