// The state-space scan on the device in bf16 against the CPU's in double, from the same rounded inputs:
// shapes that reach every path of the kernels (segments, steps inside chunks, slices of groups and heads).
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <string>
#include <vector>

#include "tests/kernels/ssd_scan_problem.h"
#include "tests/support/tensors.h"

namespace transxssm::ssd_test {
namespace {

struct DeviceCase {
  Case shape;
  DType states = DType::bf16;  // of chunks
};

std::ostream& operator<<(std::ostream& out, const DeviceCase& c) {
  return out << c.shape << " states " << dtype_name(c.states);
}

// Starts at and around the borders of steps and chunks, and two in a row.
const std::vector<DeviceCase> kDeviceCases = {
    {{.rows = 2, .tokens = 64, .heads = 1, .groups = 1, .p = 64, .n = 64, .chunk = 64, .starts = {}}},
    {{.rows = 1, .tokens = 75, .heads = 2, .groups = 2, .p = 64, .n = 128, .chunk = 64, .starts = {}},
     DType::f32},
    {{.rows = 2,
      .tokens = 200,
      .heads = 2,
      .groups = 1,
      .p = 64,
      .n = 64,
      .chunk = 64,
      .starts = {0, 5, 6, 63, 100, 128}}},
    {{.rows = 1, .tokens = 300, .heads = 2, .groups = 1, .p = 64, .n = 128, .chunk = 256, .starts = {191}}},
    {{.rows = 1, .tokens = 130, .heads = 2, .groups = 1, .p = 128, .n = 64, .chunk = 100, .starts = {99}},
     DType::f32},
    {{.rows = 1,
      .tokens = 140,
      .heads = 2,
      .groups = 2,
      .p = 64,
      .n = 64,
      .chunk = 16,
      .starts = {},
      .rotation = false}},
    {{.rows = 1,
      .tokens = 65,
      .heads = 1,
      .groups = 1,
      .p = 128,
      .n = 128,
      .chunk = 64,
      .starts = {40},
      .extras = false}},
    {{.rows = 2, .tokens = 1, .heads = 2, .groups = 1, .p = 64, .n = 64, .chunk = 64, .starts = {0}}},
    {{.rows = 1,
      .tokens = 70,
      .heads = 1,
      .groups = 1,
      .p = 64,
      .n = 64,
      .chunk = 64,
      .starts = {9},
      .u_offset = 20}},
    {{.rows = 1,
      .tokens = 80,
      .heads = 2,
      .groups = 2,
      .p = 64,
      .n = 64,
      .chunk = 64,
      .starts = {},
      .decay = 300}},
    {{.rows = 1,
      .tokens = 530,
      .heads = 1,
      .groups = 1,
      .p = 64,
      .n = 64,
      .chunk = 64,
      .starts = {},
      .u_offset = -4}},
    {{.rows = 1,
      .tokens = 530,
      .heads = 1,
      .groups = 1,
      .p = 64,
      .n = 128,
      .chunk = 128,
      .starts = {400},
      .u_offset = -5}},
};

std::vector<double> values_of(const Tensor& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.num_elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = get(tensor, static_cast<int64_t>(i));
  return values;
}

// Operands are rounded to bf16 once on their way into a product. Sums over all tokens of a head cancel.
constexpr double kBound = 4.5e-3, kSumBound = 5e-2;

// sqrt(sum of squared differences / sum of squares).
double relative_rms(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, scale = 1e-60;
  EXPECT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    scale += want[i] * want[i];
  }
  return std::sqrt(difference / scale);
}

// A problem whose activations bf16 holds exactly.
Problem rounded_problem(const Case& shape) {
  Problem problem(shape);
  problem.gradient_before = 0.25;
  for (std::vector<double>* values : {&problem.value[X], &problem.value[BB], &problem.value[CC], &problem.dy})
    for (double& v : *values) v = static_cast<double>(to_float(to_bfloat16(static_cast<float>(v))));
  return problem;
}

struct DeviceResults {
  std::vector<double> y, final_state, d[kInputs];
};

// x, b and c are slices of one buffer, as are their gradients. The final state takes the initial one's place.
DeviceResults evaluate_on_device(const Problem& problem, DType states_dtype) {
  const Case& c = problem.c;
  const auto fill = [](const OwnedTensor& tensor, const std::vector<double>& values) {
    for (size_t i = 0; i < values.size(); ++i) set(tensor, static_cast<int64_t>(i), values[i]);
  };
  const int64_t widths[] = {c.heads * c.p, c.groups * c.n, c.groups * c.n};
  const int64_t width = widths[X] + widths[BB] + widths[CC];
  const Shape shapes[] = {{c.rows, c.tokens, c.heads, c.p},
                          {c.rows, c.tokens, c.groups, c.n},
                          {c.rows, c.tokens, c.groups, c.n},
                          {c.rows, c.tokens, c.heads},
                          {c.heads},
                          {c.heads},
                          {c.heads},
                          {c.rows, c.heads, c.p, c.n}};
  const OwnedTensor wide(DType::bf16, {c.rows, c.tokens, width}, 8),
      d_wide(DType::bf16, {c.rows, c.tokens, width}, 8);
  OwnedTensor value[kInputs], gradient[kInputs];
  Tensor in[kInputs], d[kInputs];
  int64_t offset = 0;
  for (int i = 0; i < kInputs; ++i) {
    if (!problem.present(i)) continue;
    if (i <= CC) {
      in[i] = wide.view().slice(2, offset, widths[i]).reshape(shapes[i]);
      d[i] = d_wide.view().slice(2, offset, widths[i]).reshape(shapes[i]);
      offset += widths[i];
    } else {
      value[i] = OwnedTensor(DType::f32, shapes[i], i == U ? 3 : 0);
      gradient[i] = OwnedTensor(DType::f32, shapes[i], i == U ? 3 : 0);
      in[i] = value[i], d[i] = gradient[i];
    }
    for (int64_t j = 0; j < in[i].num_elements(); ++j) {
      set(in[i], j, problem.value[i][static_cast<size_t>(j)]);
      set(d[i], j, i >= BIAS && i <= SKIP ? problem.gradient_before : NAN);
    }
  }
  const OwnedTensor cos(DType::f32, {c.chunk + 1, c.n / 2}), sin(DType::f32, {c.chunk + 1, c.n / 2});
  for (int64_t i = 0; i < cos.view().num_elements(); ++i) {
    set(cos, i, std::cos(problem.angle(i / (c.n / 2), i % (c.n / 2))));
    set(sin, i, std::sin(problem.angle(i / (c.n / 2), i % (c.n / 2))));
  }
  const OwnedTensor c_scale(DType::f32, {c.rows, c.tokens}), start(DType::u8, {c.rows, c.tokens});
  fill(c_scale, problem.c_scale);
  fill(start, std::vector<double>(problem.start.begin(), problem.start.end()));
  const OwnedTensor y(DType::bf16, shapes[X]), dy(DType::bf16, shapes[X]), d_final(DType::f32, shapes[STATE]);
  fill(dy, problem.dy);
  fill(d_final, problem.d_final);
  const int64_t chunks = ssd_num_chunks(c.tokens, c.chunk);
  const OwnedTensor states(states_dtype, {c.rows, chunks, c.heads, c.p, c.n});

  SsdForward args;
  args.in = {.x = in[X],
             .b = in[BB],
             .c = in[CC],
             .u = in[U],
             .dt_bias = in[BIAS],
             .a_log = in[A_LOG],
             .d_skip = in[SKIP],
             .initial_state = in[STATE],
             .chunk = c.chunk};
  if (c.rotation) args.in.cos = cos, args.in.sin = sin;
  if (c.extras) args.in.c_scale = c_scale;
  if (!c.starts.empty()) args.in.start = start;
  args.y = y;
  args.final_state = in[STATE];
  args.chunk_states = states;
  Stream stream = test_stream();
  run(stream, args);
  SsdBackward back;
  back.in = args.in, back.chunk_states = states, back.dy = dy;
  if (c.extras) back.d_final_state = d_final;
  back.dx = d[X], back.db = d[BB], back.dc = d[CC], back.du = d[U];
  back.d_dt_bias = d[BIAS], back.d_a_log = d[A_LOG], back.d_d_skip = d[SKIP], back.d_initial_state = d[STATE];
  run_and_wait(stream, back);
  EXPECT_TRUE(d_wide.padding_intact());
  EXPECT_TRUE(gradient[U].padding_intact());
  DeviceResults results;
  results.y = values_of(y);
  if (c.extras) results.final_state = values_of(in[STATE]);
  for (int i = 0; i < kInputs; ++i)
    if (problem.present(i)) results.d[i] = values_of(d[i]);
  return results;
}

class SsdScanOnDevice : public testing::TestWithParam<DeviceCase> {};
INSTANTIATE_TEST_SUITE_P(Shapes, SsdScanOnDevice, testing::ValuesIn(kDeviceCases));

TEST_P(SsdScanOnDevice, EqualsTheCpuInDouble) {
  const Problem problem = rounded_problem(GetParam().shape);
  const Results<double> want = evaluate<double>(problem);
  const DeviceResults got = evaluate_on_device(problem, GetParam().states);
  EXPECT_LT(relative_rms(got.y, want.y), kBound);
  if (problem.c.extras) {
    EXPECT_LT(relative_rms(got.final_state, want.final_state), kBound);
  }
  for (int input = 0; input < kInputs; ++input) {
    if (!problem.present(input)) continue;
    EXPECT_LT(relative_rms(got.d[input], want.d[input]), input == BIAS || input == A_LOG ? kSumBound : kBound)
        << kInputNames[input];
  }
}

TEST(SsdScanOnDeviceProperties, SameBitsEveryTime) {
  const Problem problem = rounded_problem(kDeviceCases.back().shape);
  const DeviceResults once = evaluate_on_device(problem, DType::bf16);
  const DeviceResults again = evaluate_on_device(problem, DType::bf16);
  EXPECT_EQ(once.y, again.y);
  for (int input = 0; input < kInputs; ++input)
    EXPECT_EQ(once.d[input], again.d[input]) << kInputNames[input];
}

TEST(SsdScanOnDeviceProperties, OtherDimsAreTheUsers) {
  const Problem problem(
      {.rows = 1, .tokens = 4, .heads = 1, .groups = 1, .p = 32, .n = 64, .chunk = 64, .starts = {}});
  EXPECT_THROW(evaluate_on_device(problem, DType::f32), UsageError);
}

}  // namespace
}  // namespace transxssm::ssd_test
