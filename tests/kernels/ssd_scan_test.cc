// The chunked scan against the recurrence itself, written once for any scalar; derivatives by the complex
// step (Squire & Trapp 1998), exact to rounding.
#include <gtest/gtest.h>

#include "tests/kernels/ssd_scan_problem.h"

namespace transxssm::ssd_test {
namespace {

const std::vector<Case> kCases = {
    {.rows = 2, .tokens = 37, .heads = 2, .groups = 2, .p = 16, .n = 32, .chunk = 16, .starts = {}},
    {.rows = 1,
     .tokens = 40,
     .heads = 4,
     .groups = 2,
     .p = 8,
     .n = 8,
     .chunk = 8,
     .starts = {0, 3, 8, 15, 16, 17, 31}},
    {.rows = 2,
     .tokens = 70,
     .heads = 3,
     .groups = 1,
     .p = 8,
     .n = 16,
     .chunk = 64,
     .starts = {5, 6, 7, 63, 64}},
    {.rows = 1, .tokens = 300, .heads = 1, .groups = 1, .p = 16, .n = 16, .chunk = 256, .starts = {100, 270}},
    {.rows = 1, .tokens = 150, .heads = 2, .groups = 1, .p = 64, .n = 128, .chunk = 128, .starts = {}},
    {.rows = 2,
     .tokens = 65,
     .heads = 4,
     .groups = 4,
     .p = 64,
     .n = 64,
     .chunk = 64,
     .starts = {40},
     .extras = false},
    {.rows = 1,
     .tokens = 33,
     .heads = 2,
     .groups = 2,
     .p = 128,
     .n = 64,
     .chunk = 32,
     .starts = {},
     .rotation = false},
    {.rows = 2, .tokens = 5, .heads = 2, .groups = 1, .p = 32, .n = 24, .chunk = 64, .starts = {2}},
    {.rows = 3, .tokens = 1, .heads = 2, .groups = 2, .p = 8, .n = 16, .chunk = 64, .starts = {0}},
    {.rows = 1, .tokens = 1, .heads = 2, .groups = 1, .p = 24, .n = 40, .chunk = 16, .starts = {}},
    // softplus beyond its threshold, and decays whose sums underflow
    {.rows = 1,
     .tokens = 50,
     .heads = 2,
     .groups = 2,
     .p = 8,
     .n = 16,
     .chunk = 32,
     .starts = {9},
     .u_offset = 20},
    {.rows = 1,
     .tokens = 80,
     .heads = 2,
     .groups = 2,
     .p = 16,
     .n = 16,
     .chunk = 64,
     .starts = {},
     .decay = 300},
    {.rows = 1,
     .tokens = 80,
     .heads = 2,
     .groups = 2,
     .p = 16,
     .n = 16,
     .chunk = 64,
     .starts = {},
     .u_offset = -9},
    // states that last, across chunks and the blocks a chunk is worked on in
    {.rows = 1,
     .tokens = 250,
     .heads = 2,
     .groups = 1,
     .p = 8,
     .n = 16,
     .chunk = 160,
     .starts = {},
     .u_offset = -6},
};

class SsdScan : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, SsdScan, testing::ValuesIn(kCases));

TEST_P(SsdScan, ForwardEqualsRecurrence) {
  if (!on_cpu()) GTEST_SKIP();
  const Problem problem(GetParam());
  const Outputs<double> want = recurrence(problem, problem.value);
  for (bool backward : {false, true}) {
    const Results<double> f64 = evaluate<double>(problem, {.backward = backward});
    const Results<float> f32 = evaluate<float>(problem, {.fused = true, .backward = backward});
    EXPECT_LT(error(f64.y, want.y), 1e-13);
    EXPECT_LT(error(f32.y, want.y), 2e-6);
    if (!problem.c.extras) continue;
    EXPECT_LT(error(f64.final_state, want.final_state), 1e-13);
    EXPECT_LT(error(f32.final_state, want.final_state), 2e-6);
  }
}

TEST_P(SsdScan, GradientsEqualComplexStep) {
  if (!on_cpu()) GTEST_SKIP();
  Problem problem(GetParam());
  const Results<double> f64 = evaluate<double>(problem, {.fused = true});
  for (int input = 0; input < kInputs; ++input) {
    if (!problem.present(input)) continue;
    // A dense random direction sees an error in any element; directions on few elements say where.
    for (int direction = 0; direction < 3; ++direction) {
      std::vector<double> step = problem.normal(static_cast<int64_t>(problem.value[input].size()));
      if (direction == 2)
        for (size_t i = 0; i < step.size(); ++i) step[i] *= (i % 17 == 3 || i == 0);
      std::vector<std::complex<double>> in[kInputs];
      for (int i = 0; i < kInputs; ++i) in[i].assign(problem.value[i].begin(), problem.value[i].end());
      const double h = 1e-60;
      for (size_t i = 0; i < step.size(); ++i) in[input][i] += std::complex<double>(0, h * step[i]);
      const Outputs<std::complex<double>> out = recurrence(problem, in);
      double want = 0, got = 0, scale = 0;
      for (size_t i = 0; i < out.y.size(); ++i) want += out.y[i].imag() / h * problem.dy[i];
      for (size_t i = 0; i < out.final_state.size() && problem.c.extras; ++i)
        want += out.final_state[i].imag() / h * problem.d_final[i];
      for (size_t i = 0; i < step.size(); ++i) {
        got += f64.d[input][i] * step[i];
        scale += std::abs(f64.d[input][i] * step[i]);
      }
      EXPECT_NEAR(got, want, 1e-11 * scale + 1e-13) << kInputNames[input] << " direction " << direction;
    }
  }
}

TEST_P(SsdScan, FloatGradientsEqualDouble) {
  if (!on_cpu()) GTEST_SKIP();
  const Problem problem(GetParam());
  const Results<double> want = evaluate<double>(problem);
  const Results<float> got = evaluate<float>(problem, {.fused = true});
  for (int input = 0; input < kInputs; ++input) {
    if (!problem.present(input)) continue;
    EXPECT_LT(error(got.d[input], want.d[input]), input == BIAS || input == A_LOG ? 1e-5 : 4e-6)
        << kInputNames[input];
  }
}

template <class S>
void expect_same_bits(const Problem& problem, const Call& call) {
  const Results<float> one = evaluate<S>(problem, call);
  for (int threads : {1, 2, 3}) {
    Call again = call;
    again.threads = threads;
    const Results<float> many = evaluate<S>(problem, again);
    EXPECT_EQ(one.y, many.y);
    EXPECT_EQ(one.chunk_states, many.chunk_states);
    for (int input = 0; input < kInputs; ++input) {
      if (problem.present(input)) {
        EXPECT_EQ(one.d[input], many.d[input]) << kInputNames[input];
      }
    }
  }
}

TEST_P(SsdScan, SameBitsOnAnyNumberOfThreads) {
  if (!on_cpu()) GTEST_SKIP();
  expect_same_bits<float>(Problem(GetParam()), {});
}

// bf16 on every device, so at sizes that all of them have; few tokens, for devices that are slow to emulate.
const std::vector<Case> kRoundedCases = {
    {.rows = 2, .tokens = 37, .heads = 2, .groups = 1, .p = 64, .n = 64, .chunk = 16, .starts = {}},
    {.rows = 1,
     .tokens = 100,
     .heads = 2,
     .groups = 2,
     .p = 64,
     .n = 128,
     .chunk = 64,
     .starts = {0, 3, 4, 63, 70}},
    {.rows = 2, .tokens = 65, .heads = 4, .groups = 2, .p = 64, .n = 64, .chunk = 64, .starts = {40, 64}},
    {.rows = 1,
     .tokens = 150,
     .heads = 1,
     .groups = 1,
     .p = 128,
     .n = 64,
     .chunk = 128,
     .starts = {31, 129},
     .rotation = false},
    {.rows = 1,
     .tokens = 70,
     .heads = 2,
     .groups = 2,
     .p = 128,
     .n = 128,
     .chunk = 32,
     .starts = {40},
     .extras = false},
    {.rows = 2, .tokens = 1, .heads = 2, .groups = 1, .p = 64, .n = 128, .chunk = 64, .starts = {0}},
    {.rows = 1, .tokens = 1, .heads = 2, .groups = 2, .p = 64, .n = 64, .chunk = 16, .starts = {}},
    {.rows = 1,
     .tokens = 50,
     .heads = 2,
     .groups = 2,
     .p = 64,
     .n = 64,
     .chunk = 32,
     .starts = {9},
     .u_offset = 20},
    {.rows = 1,
     .tokens = 80,
     .heads = 1,
     .groups = 1,
     .p = 64,
     .n = 64,
     .chunk = 64,
     .starts = {},
     .decay = 300},
    {.rows = 1,
     .tokens = 200,
     .heads = 1,
     .groups = 1,
     .p = 64,
     .n = 64,
     .chunk = 64,
     .starts = {100},
     .u_offset = -5},
    // Long enough for devices to cut the row.
    {.rows = 1,
     .tokens = 270,
     .heads = 1,
     .groups = 1,
     .p = 64,
     .n = 128,
     .chunk = 128,
     .starts = {},
     .u_offset = -4},
};

// A head's gradients of dt_bias and a_log are two sums over tokens of either sign: what cancels in the sums
// does not cancel in their errors.
double rounded_bound(int input) {
  return input == BIAS || input == A_LOG ? 8 * kRoundedBound : kRoundedBound;
}

class RoundedSsdScan : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, RoundedSsdScan, testing::ValuesIn(kRoundedCases));

void expect_rounded_results(Problem problem) {
  problem.round_activations();
  const Outputs<double> outputs = recurrence(problem, problem.value);
  const Results<double> want = evaluate<double>(problem);
  for (bool rounded_states : {false, true}) {
    const Results<float> got =
        evaluate<BFloat16>(problem, {.fused = !rounded_states, .rounded_states = rounded_states});
    EXPECT_LT(relative_rms(got.y, outputs.y), kRoundedBound);
    if (problem.c.extras) {
      EXPECT_LT(relative_rms(got.final_state, outputs.final_state), kRoundedBound);
    }
    EXPECT_LT(relative_rms(got.chunk_states, want.chunk_states), kRoundedBound);
    for (int input = 0; input < kInputs; ++input) {
      if (!problem.present(input)) continue;
      EXPECT_LT(relative_rms(got.d[input], want.d[input]), rounded_bound(input)) << kInputNames[input];
    }
  }
  const Results<float> forward = evaluate<BFloat16>(problem, {.backward = false});
  EXPECT_LT(relative_rms(forward.y, outputs.y), kRoundedBound);
}

TEST_P(RoundedSsdScan, EqualsRecurrenceAndItsGradients) {
  expect_rounded_results(Problem(GetParam()));
}

TEST_P(RoundedSsdScan, SameBitsOnAnyNumberOfThreads) {
  expect_same_bits<BFloat16>(Problem(GetParam()), {.rounded_states = true});
}

// Sizes of the CPU alone: bf16 there too.
TEST_P(SsdScan, RoundedEqualsRecurrenceAndItsGradients) {
  if (!on_cpu()) GTEST_SKIP();
  expect_rounded_results(Problem(GetParam()));
}

}  // namespace
}  // namespace transxssm::ssd_test
