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
        weight(random_normal<Wide<T>>({c, k}, 2, 0.7, 0, padding)),
        bias(random_normal<Wide<T>>({c}, 3)),
        y(zeros<T>({b, t, c}, padding)),
        dy(random_normal<T>({b, t, c}, 4, 1, 0, padding)),
        dx(zeros<T>({b, t, c}, padding)),
        d_weight(random_normal<Wide<T>>({c, k}, 5, 1, 0, padding)),
        d_bias(random_normal<Wide<T>>({c}, 6)) {
    forward = {.x = x, .weight = weight, .bias = bias, .y = y};
    backward = {
        .x = x, .weight = weight, .bias = bias, .dy = dy, .dx = dx, .d_weight = d_weight, .d_bias = d_bias};
    if (!starts.empty()) {
      start = zeros<uint8_t>({b, t}, padding);
      for (int64_t row = 0; row < b; ++row)
        for (int64_t s : starts)
          if (s + row < t) set(start, row * t + s + row, 1);
      for (int64_t i = 0; i < b * t; ++i)
        documents.push_back((i % t == 0 ? 0 : documents.back()) + (start[i] != 0));
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
    return start.view() && token >= 0 ? documents[static_cast<size_t>(row * t + token)] : 0;
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
  std::vector<int64_t> documents;
  Conv1dForward forward;
  Conv1dBackward backward;
};

const std::set<int64_t> kStarts[] = {{}, {0}, {1, 2, 5}, {3, 10, 11, 12, 20}, {36}};

template <class T>
void check_forward(int64_t channels, int64_t kernel, bool windows, int64_t padding) {
  Stream stream = test_stream(2);
  for (const auto& starts : kStarts)
    for (int64_t tokens : {1, 2, 37}) {
      const Case<T> c(2, tokens, channels, kernel, starts, windows, padding);
      run_and_wait(stream, c.forward);
      EXPECT_LT(relative_error(c.y, c.expected()), tolerance<T>(2e-6, 1e-14))
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
      for (bool windows : {false, true})
        for_dtypes<float, double, BFloat16>([&](auto type) {
          check_forward<decltype(type)>(channels, kernel, windows, channels == 7 || channels == 65 ? 3 : 0);
        });
  for_dtypes<float, BFloat16>([](auto type) { check_forward<decltype(type)>(300, 4, true, 5); });
}

template <class T>
void check_distant_rows() {
  Stream stream = test_stream();
  const Case<T> c(2, 12, 65, 4, {5});
  run_and_wait(stream, c.forward);
  const OwnedTensor wide_x = filled<T>({2, 40, 200}, std::numeric_limits<double>::quiet_NaN()),
                    wide_y = filled<T>({12, 2, 96}, 7);
  const Tensor x = wide_x.view().slice(1, 20, 12).slice(2, 104, 65);
  const Tensor y = wide_y.view().slice(2, 8, 65).transpose(0, 1);
  copy(c.x, x);
  Conv1dForward args = c.forward;
  args.x = x, args.y = y;
  run_and_wait(stream, args);
  EXPECT_TRUE(same_bits(c.y, y));
  EXPECT_EQ(wide_y[7], 7);
  EXPECT_EQ(wide_y[73], 7);
}

TEST(Conv1d, RowsMayLieAnyDistanceApart) {
  for_dtypes<float, BFloat16>([](auto type) { check_distant_rows<decltype(type)>(); });
}

template <class T>
void check_pieces() {
  Stream stream = test_stream();
  for (int64_t kernel : {1, 2, 4, 8})
    for (const auto& starts : kStarts)
      for (const auto& lengths : {std::vector<int64_t>{20, 17}, {1, 1, 1, 2, 3, 29}, {36, 1}}) {
        const Case<T> c(2, 37, 33, kernel, starts);
        run_and_wait(stream, c.forward);
        const OwnedTensor window = zeros<T>({2, kernel - 1, 33}), y = zeros<T>({2, 37, 33});
        Conv1dForward piece = c.forward;
        piece.initial_window = piece.final_window = window;
        int64_t at = 0;
        for (int64_t length : lengths) {
          piece.x = c.x.view().slice(1, at, length), piece.y = y.view().slice(1, at, length);
          if (c.start.view()) piece.start = c.start.view().slice(1, at, length);
          run_and_wait(stream, piece);
          at += length;
        }
        EXPECT_TRUE(same_bits(c.y, y)) << "kernel " << kernel;
      }
}

TEST(Conv1d, PiecesWithWindowsEqualOneLongCall) {
  for_dtypes<float, BFloat16>([](auto type) { check_pieces<decltype(type)>(); });
}

template <class T>
void check_other_document() {
  Stream stream = test_stream();
  const Case<T> c(1, 12, 5, 4, {6});
  for (int64_t i = 0; i < 6 * 5; ++i) set(c.x, i, std::numeric_limits<double>::quiet_NaN());
  run_and_wait(stream, c.forward);
  run_and_wait(stream, c.backward);
  for (int64_t i = 0; i < 12 * 5; ++i) {
    EXPECT_EQ(std::isnan(c.y[i]), i < 6 * 5) << i;
    EXPECT_EQ(std::isnan(c.dx[i]), i < 6 * 5) << i;
  }
}

TEST(Conv1d, AnotherDocumentIsNotSeenAtAll) {
  for_dtypes<double, BFloat16>([](auto type) { check_other_document<decltype(type)>(); });
}

template <class T>
void check_gradient() {
  Stream stream = test_stream(2);
  for (int64_t kernel : {1, 2, 4, 8})
    for (const auto& starts : kStarts)
      for (int64_t tokens : {3, 37}) {
        const Case<T> c(2, tokens, 9, kernel, starts, false, 2);
        for (int64_t i = 0; i < 9 * kernel; ++i) set(c.d_weight, i, 0);
        zero(c.d_bias);
        run_and_wait(stream, c.backward);
        const auto f = [&] {
          run_and_wait(stream, c.forward);
          return dot(c.y, c.dy);
        };
        EXPECT_LT(gradcheck(f, c.x, c.dx, 1e-5, 200), 1e-7) << tokens << " tokens, kernel " << kernel;
        EXPECT_LT(gradcheck(f, c.weight, c.d_weight, 1e-5, 72), 1e-7) << "kernel " << kernel;
        EXPECT_LT(gradcheck(f, c.bias, c.d_bias), 1e-7);
        EXPECT_TRUE(c.dx.padding_intact() && c.d_weight.padding_intact());
      }
}

TEST(Conv1d, BackwardIsTheGradient) {
  for_dtypes<double>([](auto type) { check_gradient<decltype(type)>(); });
}

// The gradients of the same values, in double on the CPU: those equal differences of the forward (above).
template <class T>
void check_gradients_in_double(int64_t tokens, int64_t channels, int64_t kernel,
                               const std::set<int64_t>& starts, int64_t padding) {
  Stream stream = test_stream(2), cpu(1);
  const Case<T> c(3, tokens, channels, kernel, starts, false, padding);
  const Case<double> exact(3, tokens, channels, kernel, starts);
  for (auto [from, to] : {std::pair(&c.x, &exact.x),
                          {&c.weight, &exact.weight},
                          {&c.bias, &exact.bias},
                          {&c.dy, &exact.dy},
                          {&c.d_weight, &exact.d_weight},
                          {&c.d_bias, &exact.d_bias}})
    copy(converted<double>(*from), *to);
  run(cpu, exact.backward);
  run_and_wait(stream, c.backward);
  EXPECT_LT(relative_error(c.dx, exact.dx), tolerance<T>(2e-6, 0)) << tokens << " tokens, kernel " << kernel;
  EXPECT_LT(relative_error(c.d_weight, exact.d_weight), tolerance<Wide<T>>(2e-6, 0)) << "kernel " << kernel;
  EXPECT_LT(relative_error(c.d_bias, exact.d_bias), tolerance<Wide<T>>(2e-6, 0)) << "kernel " << kernel;
  EXPECT_TRUE(c.dx.padding_intact() && c.d_weight.padding_intact());
}

TEST(Conv1d, GradientsEqualThoseInDouble) {
  for_dtypes<float, BFloat16>([](auto type) {
    using T = decltype(type);
    check_gradients_in_double<T>(100, 150, 4, {5, 40, 41}, 0);
    for (int64_t kernel : {1, 2, 8}) check_gradients_in_double<T>(37, 9, kernel, {3, 20, 21}, 3);
    check_gradients_in_double<T>(2, 9, 4, {}, 0);
  });
}

template <class T>
void check_accumulation() {
  Stream stream = test_stream();
  const Case<T> c(2, 40, 33, 4, {7});
  const OwnedTensor weight_before = clone(c.d_weight), bias_before = clone(c.d_bias);
  run_and_wait(stream, c.backward);
  const OwnedTensor weight_once = clone(c.d_weight), bias_once = clone(c.d_bias);
  run_and_wait(stream, c.backward);
  for (int64_t i = 0; i < 33 * 4; ++i)
    EXPECT_NEAR(c.d_weight[i] - weight_once[i], weight_once[i] - weight_before[i],
                tolerance<Wide<T>>(1e-4, 1e-12));
  for (int64_t i = 0; i < 33; ++i)
    EXPECT_NEAR(c.d_bias[i] - bias_once[i], bias_once[i] - bias_before[i], tolerance<Wide<T>>(1e-4, 1e-12));
  EXPECT_GT(relative_error(weight_once, weight_before), 0.1);
}

TEST(Conv1d, ParameterGradientsAccumulate) {
  for_dtypes<double, float, BFloat16>([](auto type) { check_accumulation<decltype(type)>(); });
}

template <class T>
void check_in_place() {
  Stream one = test_stream(1);
  const Case<T> a(2, 100, 300, 4, {3, 50, 51});
  run_and_wait(one, a.forward);
  run_and_wait(one, a.backward);
  for (int num_threads : {1, 2, 3, 5}) {
    Stream many = test_stream(num_threads);
    Case<T> b(2, 100, 300, 4, {3, 50, 51});
    b.backward.dx = b.dy;
    run_and_wait(many, b.forward);
    run_and_wait(many, b.backward);
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dy)) << num_threads << " threads";
    EXPECT_TRUE(same_bits(a.d_weight, b.d_weight) && same_bits(a.d_bias, b.d_bias)) << num_threads;
  }
}

TEST(Conv1d, InputGradientMayReplaceOutputGradientOnAnyNumberOfThreads) {
  for_dtypes<float, BFloat16>([](auto type) { check_in_place<decltype(type)>(); });
}

template <class T>
void check_huge_sums() {
  Stream stream = test_stream();
  const OwnedTensor x = zeros<T>({1, 5, 1}), weight = filled<Wide<T>>({1, 1}, 1), bias = zeros<Wide<T>>({1});
  const OwnedTensor y = zeros<T>({1, 5, 1}), dx = zeros<T>({1, 5, 1}), d_weight = zeros<Wide<T>>({1, 1}),
                    d_bias = zeros<Wide<T>>({1});
  const double inputs[] = {-1e30, -1000, 1000, 1e30, std::numeric_limits<double>::quiet_NaN()};
  for (int64_t i = 0; i < 5; ++i) set(x, i, inputs[i]);
  run_and_wait(stream, Conv1dForward{.x = x, .weight = weight, .bias = bias, .y = y});
  run_and_wait(stream, Conv1dBackward{.x = x,
                                      .weight = weight,
                                      .bias = bias,
                                      .dy = filled<T>({1, 5, 1}, 1),
                                      .dx = dx,
                                      .d_weight = d_weight,
                                      .d_bias = d_bias});
  EXPECT_NEAR(y[0], 0, 1e-7);
  EXPECT_NEAR(y[1], 0, 1e-7);
  EXPECT_EQ(y[2], 1000);
  EXPECT_EQ(y[3], x[3]);
  EXPECT_NEAR(dx[0], 0, 1e-7);
  EXPECT_EQ(dx[2], 1);
  EXPECT_EQ(dx[3], 1);
  EXPECT_TRUE(std::isnan(y[4]) && std::isnan(dx[4]) && std::isnan(d_weight[0]) && std::isnan(d_bias[0]));
}

TEST(Conv1d, HugeSumsAndNansArePassedOn) {
  for_dtypes<float, BFloat16>([](auto type) { check_huge_sums<decltype(type)>(); });
}

TEST(Conv1d, RefusesAWindowOfMoreThanEightTokens) {
  Stream stream = test_stream();
  const Case<float> c(1, 3, 4, 9);
  EXPECT_THROW(run_and_wait(stream, c.forward), InternalError);
  EXPECT_THROW(run_and_wait(stream, c.backward), InternalError);
}

}  // namespace
}  // namespace transxssm
