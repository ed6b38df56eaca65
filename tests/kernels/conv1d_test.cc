#include "kernels/conv1d.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

// The tensors of one forward and backward. Row b's documents start at the tokens `starts` + b.
template <class T>
struct Case {
  Case(int64_t rows, int64_t tokens, int64_t channels, int64_t kernel, const std::set<int64_t>& starts = {},
       bool windows = false, int64_t padding = 0)
      : b(rows),
        t(tokens),
        c(channels),
        k(kernel),
        x(random_normal<T>({b, t, c}, 1, 1, 0.2, padding)),
        weight(random_normal<T>({c, k}, 2, 0.7, 0, padding)),
        bias(random_normal<T>({c}, 3)),
        y(zeros<T>({b, t, c}, padding)),
        dy(random_normal<T>({b, t, c}, 4, 1, 0, padding)),
        dx(zeros<T>({b, t, c}, padding)),
        d_weight(random_normal<T>({c, k}, 5, 1, 0, padding)),
        d_bias(random_normal<T>({c}, 6)) {
    forward = {.x = x, .weight = weight, .bias = bias, .y = y};
    backward = {
        .x = x, .weight = weight, .bias = bias, .dy = dy, .dx = dx, .d_weight = d_weight, .d_bias = d_bias};
    if (!starts.empty()) {
      start = zeros<uint8_t>({b, t}, padding);
      for (int64_t row = 0; row < b; ++row)
        for (int64_t s : starts)
          if (s + row < t) set(start, row * t + s + row, 1);
      forward.start = backward.start = start;
    }
    if (!windows) return;
    initial = random_normal<T>({b, k - 1, c}, 7, 1, 0, padding);
    final = filled<T>({b, k - 1, c}, 99, padding);
    forward.initial_window = initial, forward.final_window = final;
  }
  // Input of token s >= -(K-1) of a row, as seen by a token of document `document`; the window before the row
  // belongs to document 0.
  double input(int64_t row, int64_t s, int64_t channel, int64_t document) const {
    if (s < -(k - 1) || document_of(row, s) != document) return 0;
    if (s >= 0) return x[(row * t + s) * c + channel];
    return initial.view() ? initial[(row * (k - 1) + s + k - 1) * c + channel] : 0;
  }
  int64_t document_of(int64_t row, int64_t token) const {
    int64_t document = 0;
    for (int64_t s = 0; start.view() && s <= token; ++s) document += start[row * t + s] != 0;
    return document;
  }
  std::vector<double> expected() const {
    std::vector<double> result;
    for (int64_t row = 0; row < b; ++row)
      for (int64_t token = 0; token < t; ++token)
        for (int64_t channel = 0; channel < c; ++channel) {
          double sum = bias[channel];
          for (int64_t tap = 0; tap < k; ++tap)
            sum +=
                weight[channel * k + tap] * input(row, token - k + 1 + tap, channel, document_of(row, token));
          result.push_back(sum / (1 + std::exp(-sum)));
        }
    return result;
  }
  std::vector<double> expected_final() const {
    std::vector<double> result;
    for (int64_t row = 0; row < b; ++row)
      for (int64_t token = t - k + 1; token < t; ++token)
        for (int64_t channel = 0; channel < c; ++channel)
          result.push_back(input(row, token, channel, document_of(row, t - 1)));
    return result;
  }
  int64_t b, t, c, k;
  OwnedTensor x, weight, bias, y, dy, dx, d_weight, d_bias, start, initial, final;
  Conv1dForward forward;
  Conv1dBackward backward;
};

const std::set<int64_t> kStarts[] = {{}, {0}, {1, 2, 5}, {3, 10, 11, 12, 20}, {36}};

template <class T>
void check_forward(int64_t channels, int64_t kernel, bool windows, int64_t padding) {
  Stream stream(2);
  for (const auto& starts : kStarts)
    for (int64_t tokens : {1, 2, 37}) {
      const Case<T> c(2, tokens, channels, kernel, starts, windows, padding);
      run(stream, c.forward);
      EXPECT_LT(relative_error(c.y, c.expected()), sizeof(T) == 4 ? 2e-6 : 1e-14)
          << tokens << " tokens, " << channels << " channels, kernel " << kernel;
      EXPECT_TRUE(c.y.padding_intact());
      if (!windows) continue;
      EXPECT_EQ(values(c.final), c.expected_final()) << tokens << " tokens, kernel " << kernel;
      EXPECT_TRUE(c.final.padding_intact());
    }
}

TEST(Conv1d, ForwardEqualsItsDefinition) {
  for (int64_t channels : {1, 7, 63, 65})
    for (int64_t kernel : {1, 2, 4, 8})
      for (bool windows : {false, true}) {
        check_forward<float>(channels, kernel, windows, channels == 7 ? 3 : 0);
        check_forward<double>(channels, kernel, windows, channels == 65 ? 3 : 0);
      }
  check_forward<float>(300, 4, true, 5);
}

TEST(Conv1d, RowsMayLieAnyDistanceApart) {
  Stream stream;
  const Case<float> c(2, 12, 65, 4, {5});
  run(stream, c.forward);
  const OwnedTensor wide_x = filled<float>({2, 40, 200}, std::numeric_limits<double>::quiet_NaN()),
                    wide_y = filled<float>({12, 2, 90}, 7);
  const Tensor x = wide_x.view().slice(1, 20, 12).slice(2, 100, 65);
  const Tensor y = wide_y.view().slice(2, 1, 65).transpose(0, 1);
  copy(c.x, x);
  Conv1dForward args = c.forward;
  args.x = x, args.y = y;
  run(stream, args);
  EXPECT_TRUE(same_bits(c.y, y));
  EXPECT_EQ(wide_y[0], 7);
  EXPECT_EQ(wide_y[66], 7);
}

TEST(Conv1d, PiecesWithWindowsEqualOneLongCall) {
  Stream stream;
  for (int64_t kernel : {1, 2, 4, 8})
    for (const auto& starts : kStarts)
      for (const auto& lengths : {std::vector<int64_t>{20, 17}, {1, 1, 1, 2, 3, 29}, {36, 1}}) {
        const Case<float> c(2, 37, 33, kernel, starts);
        run(stream, c.forward);
        const OwnedTensor window = zeros<float>({2, kernel - 1, 33}), y = zeros<float>({2, 37, 33});
        Conv1dForward piece = c.forward;
        piece.initial_window = piece.final_window = window;
        int64_t at = 0;
        for (int64_t length : lengths) {
          piece.x = c.x.view().slice(1, at, length), piece.y = y.view().slice(1, at, length);
          if (c.start.view()) piece.start = c.start.view().slice(1, at, length);
          run(stream, piece);
          at += length;
        }
        EXPECT_TRUE(same_bits(c.y, y)) << "kernel " << kernel;
      }
}

TEST(Conv1d, AnotherDocumentIsNotSeenAtAll) {
  Stream stream;
  const Case<double> c(1, 12, 5, 4, {6});
  for (int64_t i = 0; i < 6 * 5; ++i) set(c.x, i, std::numeric_limits<double>::quiet_NaN());
  run(stream, c.forward);
  run(stream, c.backward);
  for (int64_t i = 0; i < 12 * 5; ++i) {
    EXPECT_EQ(std::isnan(c.y[i]), i < 6 * 5) << i;
    EXPECT_EQ(std::isnan(c.dx[i]), i < 6 * 5) << i;
  }
}

TEST(Conv1d, BackwardIsTheGradient) {
  Stream stream(2);
  for (int64_t kernel : {1, 2, 4, 8})
    for (const auto& starts : kStarts)
      for (int64_t tokens : {3, 37}) {
        const Case<double> c(2, tokens, 9, kernel, starts, false, 2);
        for (int64_t i = 0; i < 9 * kernel; ++i) set(c.d_weight, i, 0);
        zero(c.d_bias);
        run(stream, c.backward);
        const auto f = [&] {
          run(stream, c.forward);
          return dot(c.y, c.dy);
        };
        EXPECT_LT(gradcheck(f, c.x, c.dx, 1e-5, 200), 1e-7) << tokens << " tokens, kernel " << kernel;
        EXPECT_LT(gradcheck(f, c.weight, c.d_weight, 1e-5, 72), 1e-7) << "kernel " << kernel;
        EXPECT_LT(gradcheck(f, c.bias, c.d_bias), 1e-7);
        EXPECT_TRUE(c.dx.padding_intact() && c.d_weight.padding_intact());
      }
}

TEST(Conv1d, FloatGradientsEqualThoseInDouble) {
  Stream stream(2);
  const Case<double> exact(3, 100, 150, 4, {5, 40, 41});
  const Case<float> rounded(3, 100, 150, 4, {5, 40, 41});
  run(stream, exact.backward);
  run(stream, rounded.backward);
  EXPECT_LT(relative_error(rounded.dx, exact.dx), 2e-6);
  EXPECT_LT(relative_error(rounded.d_weight, exact.d_weight), 2e-6);
  EXPECT_LT(relative_error(rounded.d_bias, exact.d_bias), 2e-6);
}

TEST(Conv1d, ParameterGradientsAccumulate) {
  Stream stream;
  const Case<double> c(2, 40, 33, 4, {7});
  const OwnedTensor weight_before = clone(c.d_weight), bias_before = clone(c.d_bias);
  run(stream, c.backward);
  const OwnedTensor weight_once = clone(c.d_weight), bias_once = clone(c.d_bias);
  run(stream, c.backward);
  for (int64_t i = 0; i < 33 * 4; ++i)
    EXPECT_NEAR(c.d_weight[i] - weight_once[i], weight_once[i] - weight_before[i], 1e-12);
  for (int64_t i = 0; i < 33; ++i)
    EXPECT_NEAR(c.d_bias[i] - bias_once[i], bias_once[i] - bias_before[i], 1e-12);
  EXPECT_GT(relative_error(weight_once, weight_before), 0.1);
}

TEST(Conv1d, InputGradientMayReplaceOutputGradientOnAnyNumberOfThreads) {
  Stream one(1);
  const Case<float> a(2, 100, 300, 4, {3, 50, 51});
  run(one, a.forward);
  run(one, a.backward);
  for (int num_threads : {1, 2, 3, 5}) {
    Stream many(num_threads);
    Case<float> b(2, 100, 300, 4, {3, 50, 51});
    b.backward.dx = b.dy;
    run(many, b.forward);
    run(many, b.backward);
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dy)) << num_threads << " threads";
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight) && same_bits(a.d_bias, b.d_bias)) << num_threads;
  }
}

TEST(Conv1d, HugeSumsAndNansArePassedOn) {
  Stream stream;
  const OwnedTensor x = zeros<float>({1, 5, 1}), weight = filled<float>({1, 1}, 1), bias = zeros<float>({1});
  const OwnedTensor y = zeros<float>({1, 5, 1}), dx = zeros<float>({1, 5, 1}),
                    d_weight = zeros<float>({1, 1}), d_bias = zeros<float>({1});
  const double inputs[] = {-1e30, -1000, 1000, 1e30, std::numeric_limits<double>::quiet_NaN()};
  for (int64_t i = 0; i < 5; ++i) set(x, i, inputs[i]);
  run(stream, Conv1dForward{.x = x, .weight = weight, .bias = bias, .y = y});
  run(stream, Conv1dBackward{.x = x,
                             .weight = weight,
                             .bias = bias,
                             .dy = filled<float>({1, 5, 1}, 1),
                             .dx = dx,
                             .d_weight = d_weight,
                             .d_bias = d_bias});
  EXPECT_NEAR(y[0], 0, 1e-7);
  EXPECT_NEAR(y[1], 0, 1e-7);
  EXPECT_EQ(y[2], 1000);
  EXPECT_EQ(y[3], static_cast<double>(1e30F));
  EXPECT_NEAR(dx[0], 0, 1e-7);
  EXPECT_EQ(dx[2], 1);
  EXPECT_EQ(dx[3], 1);
  EXPECT_TRUE(std::isnan(y[4]) && std::isnan(dx[4]) && std::isnan(d_weight[0]) && std::isnan(d_bias[0]));
}

TEST(Conv1d, RefusesAWindowOfMoreThanEightTokens) {
  Stream stream;
  const Case<float> c(1, 3, 4, 9);
  EXPECT_THROW(run(stream, c.forward), InternalError);
  EXPECT_THROW(run(stream, c.backward), InternalError);
}

}  // namespace
}  // namespace transxssm
