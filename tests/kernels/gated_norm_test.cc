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
        weight(random_normal<Wide<T>>({width}, 3, 0.3, 1)),
        squares(zeros<Wide<T>>({tokens, groups}, padding)),
        dots(zeros<Wide<T>>({tokens, groups}, padding)),
        y(zeros<T>({tokens, width}, padding)),
        dy(random_normal<T>({tokens, width}, 4, 1, 0, padding)),
        dx(zeros<T>({tokens, width}, padding)),
        dz(zeros<T>({tokens, width}, padding)),
        d_weight(random_normal<Wide<T>>({width}, 5)) {
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
    run_and_wait(stream, GatedNormSquares{.x = x, .z = z, .squares = squares});
    run_and_wait(stream, forward);
  }
  void run_backward(Stream& stream) const {
    run_and_wait(stream, GatedNormDots{.x = x, .z = z, .weight = weight, .dy = dy, .dots = dots});
    run_and_wait(stream, backward);
  }
  int64_t tokens, groups, width;
  OwnedTensor x, z, weight, squares, dots, y, dy, dx, dz, d_weight;
  GatedNormForward forward;
  GatedNormBackward backward;
};

template <class T>
void check_forward(int64_t groups, int64_t group_width, int64_t padding) {
  Stream stream = test_stream(2);
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
  EXPECT_LT(relative_error(c.y, y), tolerance<T>(1e-6, 1e-14)) << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.squares, squares), tolerance<Wide<T>>(1e-6, 1e-14))
      << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.dots, dots), tolerance<Wide<T>>(1e-6, 1e-14))
      << groups << " groups of " << group_width;
  EXPECT_TRUE(c.y.padding_intact() && c.squares.padding_intact() && c.dots.padding_intact());
}

TEST(GatedNorm, ForwardEqualsItsDefinition) {
  for (int64_t group_width : {1, 7, 63, 65, 352})
    for (int64_t groups : {1, 3})
      for (int64_t padding : {0, 3})
        for_dtypes<float, double, BFloat16>(
            [&](auto type) { check_forward<decltype(type)>(groups, group_width, padding); });
}

template <class T>
void check_gradient() {
  Stream stream = test_stream(2);
  for (auto [tokens, groups, group_width] :
       {std::array<int64_t, 3>{70, 1, 9}, {40, 3, 5}, {4, 2, 35}, {3, 4, 1}}) {
    Case<T> c(tokens, groups, group_width, 2);
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

TEST(GatedNorm, BackwardIsTheGradient) {
  for_dtypes<double>([](auto type) { check_gradient<decltype(type)>(); });
}

// Two groups, each split in two halves on "ranks" of their own that only share sums.
template <class T>
void check_halves() {
  Stream stream = test_stream();
  const int64_t tokens = 40, group_width = 34, half = group_width / 2;
  const Case<T> whole(tokens, 2, group_width);
  whole.run_forward(stream);
  whole.run_backward(stream);
  const Case<T> split(tokens, 2, group_width);
  const OwnedTensor squares[2] = {zeros<T>({tokens, 1}), zeros<T>({tokens, 1})};
  const OwnedTensor dots[2] = {zeros<T>({tokens, 1}), zeros<T>({tokens, 1})};
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
      run_and_wait(stream, GatedNormSquares{part(split.x, rank), part(split.z, rank), squares[rank]});
    add(squares);
    for (int64_t rank : {0, 1}) {
      run_and_wait(stream, GatedNormForward{.x = part(split.x, rank),
                                            .z = part(split.z, rank),
                                            .weight = part(split.weight, rank),
                                            .squares = squares[rank],
                                            .group_width = group_width,
                                            .y = part(split.y, rank)});
      run_and_wait(stream, GatedNormDots{.x = part(split.x, rank),
                                         .z = part(split.z, rank),
                                         .weight = part(split.weight, rank),
                                         .dy = part(split.dy, rank),
                                         .dots = dots[rank]});
    }
    add(dots);
    for (int64_t rank : {0, 1})
      run_and_wait(stream, GatedNormBackward{.x = part(split.x, rank),
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
  EXPECT_LT(relative_error(split.y, whole.y), tolerance<T>(1e-6, 1e-14));
  EXPECT_LT(relative_error(split.dx, whole.dx), tolerance<T>(2e-6, 1e-14));
  EXPECT_LT(relative_error(split.dz, whole.dz), tolerance<T>(2e-6, 1e-14));
  EXPECT_LT(relative_error(split.d_weight, whole.d_weight), tolerance<T>(2e-6, 1e-14));
}

TEST(GatedNorm, HalvesOfGroupsEqualTheWhole) {
  for_dtypes<double, float>([](auto type) { check_halves<decltype(type)>(); });
}

// The gradients of the same values, in double on the CPU: those equal differences of the forward (above).
template <class T>
void check_gradients_in_double(int64_t tokens, int64_t groups, int64_t group_width, int64_t padding) {
  Stream stream = test_stream(2), cpu(1);
  const Case<T> c(tokens, groups, group_width, padding);
  const Case<double> exact(tokens, groups, group_width);
  for (auto [from, to] : {std::pair(&c.x, &exact.x),
                          {&c.z, &exact.z},
                          {&c.weight, &exact.weight},
                          {&c.dy, &exact.dy},
                          {&c.d_weight, &exact.d_weight}})
    copy(converted<double>(*from), *to);
  exact.run_forward(cpu), exact.run_backward(cpu);
  c.run_forward(stream), c.run_backward(stream);
  EXPECT_LT(relative_error(c.dx, exact.dx), tolerance<T>(3e-6, 0)) << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.dz, exact.dz), tolerance<T>(3e-6, 0)) << groups << " groups of " << group_width;
  EXPECT_LT(relative_error(c.d_weight, exact.d_weight), tolerance<Wide<T>>(3e-6, 0)) << group_width;
  EXPECT_TRUE(c.dx.padding_intact() && c.dz.padding_intact());
}

TEST(GatedNorm, GradientsEqualThoseInDouble) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    check_gradients_in_double<T>(100, 2, 75, 0);
    check_gradients_in_double<T>(33, 1, 352, 3);
    check_gradients_in_double<T>(5, 3, 8, 0);
  });
}

template <class T>
void check_accumulation() {
  Stream stream = test_stream();
  const Case<T> c(70, 2, 33);
  c.run_forward(stream);
  const OwnedTensor before = clone(c.d_weight);
  c.run_backward(stream);
  const OwnedTensor once = clone(c.d_weight);
  c.run_backward(stream);
  for (int64_t i = 0; i < 66; ++i)
    EXPECT_NEAR(c.d_weight[i] - once[i], once[i] - before[i], tolerance<Wide<T>>(1e-4, 1e-12));
  EXPECT_GT(relative_error(once, before), 0.1);
}

TEST(GatedNorm, WeightGradientsAccumulate) {
  for_dtypes<double, float, BFloat16>([](auto type) { check_accumulation<decltype(type)>(); });
}

template <class T>
void check_in_place() {
  Stream one = test_stream(1);
  const Case<T> a(200, 3, 65);
  a.run_forward(one);
  a.run_backward(one);
  for (int num_threads : {1, 2, 3, 5}) {
    Stream many = test_stream(num_threads);
    Case<T> b(200, 3, 65);
    b.backward.dx = b.dy;
    b.run_forward(many);
    b.run_backward(many);
    EXPECT_TRUE(same_bits(a.squares, b.squares) && same_bits(a.dots, b.dots)) << num_threads << " threads";
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dy) && same_bits(a.dz, b.dz)) << num_threads;
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight)) << num_threads;
  }
}

TEST(GatedNorm, InputGradientMayReplaceOutputGradientOnAnyNumberOfThreads) {
  for_dtypes<float, BFloat16>([](auto type) { check_in_place<decltype(type)>(); });
}

template <class T>
void check_large_gates() {
  Stream stream = test_stream();
  const double gates[] = {-1e30, -1000, -100, 0, 100, 1000};
  const Case<T> c(6, 1, 65);
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t i = 0; i < 65; ++i) set(c.x, t * 65 + i, 1), set(c.z, t * 65 + i, gates[t]);
  c.run_forward(stream);
  c.run_backward(stream);
  for (int64_t t = 0; t < 6; ++t) {
    EXPECT_NEAR(c.y[t * 65] / c.weight[0], gates[t] > 0 ? 1 : 0, tolerance<T>(1e-4, 0)) << gates[t];
    EXPECT_TRUE(std::isfinite(c.dx[t * 65]) && std::isfinite(c.dz[t * 65])) << gates[t];
  }
  for (const OwnedTensor* poisoned : {&c.x, &c.z}) {
    const Case<T> n(2, 1, 65);
    set(poisoned == &c.x ? n.x : n.z, 3, std::numeric_limits<double>::quiet_NaN());
    n.run_forward(stream);
    n.run_backward(stream);
    EXPECT_TRUE(std::isnan(n.y[0]) && std::isnan(n.dx[0]) && std::isnan(n.dz[0])) << "a NaN is not hidden";
    EXPECT_TRUE(std::isnan(n.y[3]) && std::isnan(n.dx[3]) && std::isnan(n.dz[3]));
    EXPECT_FALSE(std::isnan(n.y[65]) || std::isnan(n.dx[65]));
  }
}

TEST(GatedNorm, LargeGatesAndNans) {
  for_dtypes<float, BFloat16>([](auto type) { check_large_gates<decltype(type)>(); });
}

TEST(GatedNorm, RefusesGroupsThatDoNotDivideTheChannels) {
  Stream stream = test_stream();
  const Case<float> c(2, 1, 65);
  const OwnedTensor squares = zeros<float>({2, 2});
  EXPECT_THROW(run_and_wait(stream, GatedNormSquares{c.x, c.z, squares}), InternalError);
  GatedNormForward args = c.forward;
  args.group_width = 64;
  EXPECT_THROW(run_and_wait(stream, args), InternalError);
  args.group_width = 0;
  EXPECT_THROW(run_and_wait(stream, args), InternalError) << "not given";
}

}  // namespace
}  // namespace transxssm
