// Blocked attention against the explicit softmax, written once for any scalar; derivatives by the complex
// step (Squire & Trapp 1998), exact to rounding.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <ostream>
#include <random>
#include <vector>

#include "tests/support/tensors.h"

namespace transxssm {
namespace {

struct Case {
  int64_t rows, queries, heads, key_heads, p, offset;
  std::vector<int64_t> starts;  // documents begin at these keys (of row 0; one later in each further row)
  int64_t spare = 0;            // keys behind the last one any query sees
  double sharpness = 1;         // factor of the scores
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << "B" << c.rows << " Tq" << c.queries << " H" << c.heads << " KV" << c.key_heads << " P" << c.p
      << " offset " << c.offset << " starts";
  for (int64_t s : c.starts) out << " " << s;
  return out;
}

size_t z(int64_t i) {
  return static_cast<size_t>(i);
}

struct Problem {
  explicit Problem(const Case& shape) : c(shape), keys(c.queries + c.offset + c.spare), random(3) {
    q = normal(c.rows * c.queries * c.heads * c.p);
    k = normal(c.rows * keys * c.key_heads * c.p);
    v = normal(c.rows * keys * c.key_heads * c.p);
    d_out = normal(c.rows * c.queries * c.heads * c.p);
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t i = 0; i < c.queries; ++i) {
        int64_t first = 0;
        for (int64_t s : c.starts)
          if (s + r <= i + c.offset) first = s + r;
        first_key.push_back(static_cast<int32_t>(first));
      }
    }
    scale = c.sharpness / std::sqrt(static_cast<double>(c.p));
  }
  // Values a float holds, so that f32 and f64 start from the same problem.
  std::vector<double> normal(int64_t size) {
    std::vector<double> x(z(size));
    for (double& e : x) e = std::normal_distribution<float>()(random);
    return x;
  }

  // q, k, v and d_out become values that a bf16 holds.
  void round_activations() {
    for (std::vector<double>* values : {&q, &k, &v, &d_out})
      for (double& e : *values) e = static_cast<double>(to_float(to_bfloat16(static_cast<float>(e))));
  }

  Case c;
  int64_t keys;
  std::mt19937 random;
  std::vector<double> q, k, v, d_out;
  std::vector<int32_t> first_key;
  double scale = 1;
};

template <class S>
struct Reference {
  std::vector<S> out, log_sum_exp;
};

template <class S>
Reference<S> softmax_attention(const Problem& problem, const std::vector<S>& q, const std::vector<S>& k,
                               const std::vector<S>& v) {
  const Case& c = problem.c;
  Reference<S> result;
  result.out.assign(q.size(), S(0));
  result.log_sum_exp.resize(z(c.rows * c.heads * c.queries));
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h * c.key_heads / c.heads;
      for (int64_t i = 0; i < c.queries; ++i) {
        const S* qi = &q[z(((r * c.queries + i) * c.heads + h) * c.p)];
        const int64_t first = problem.first_key[z(r * c.queries + i)], last = i + c.offset;
        std::vector<S> weight;
        double max = -1e300;
        for (int64_t j = first; j <= last; ++j) {
          const S* kj = &k[z(((r * problem.keys + j) * c.key_heads + kv) * c.p)];
          S score(0);
          for (int64_t e = 0; e < c.p; ++e) score += qi[e] * kj[e];
          weight.push_back(score * problem.scale);
          max = std::max(max, std::real(weight.back()));
        }
        S sum(0);
        for (S& w : weight) sum += (w = std::exp(w - max));
        S* out = &result.out[z(((r * c.queries + i) * c.heads + h) * c.p)];
        for (int64_t j = first; j <= last; ++j) {
          const S* vj = &v[z(((r * problem.keys + j) * c.key_heads + kv) * c.p)];
          for (int64_t e = 0; e < c.p; ++e) out[e] += weight[z(j - first)] / sum * vj[e];
        }
        result.log_sum_exp[z((r * c.heads + h) * c.queries + i)] = std::log(sum) + max;
      }
    }
  }
  return result;
}

template <class T>
struct Results {
  std::vector<T> out, log_sum_exp, dq, dk, dv;
};

// The kernels on a problem, f64 on the CPU, other types on the device of the test; q, k and v are slices of
// wider buffers, and so are their gradients.
template <class S, class T = Wide<S>>
Results<T> evaluate(const Problem& problem, int threads = 1) {
  const Case& c = problem.c;
  const DType dtype = DTypeOf<S>::value;
  const Shape q_shape = {c.rows, c.queries, c.heads, c.p}, k_shape = {c.rows, problem.keys, c.key_heads, c.p};
  const int64_t q_width = c.heads * c.p, k_width = c.key_heads * c.p;
  // One element, or what the device aligns rows to, before the first slice.
  const int64_t first = std::max<int64_t>(1, test_device().row_bytes / dtype_bytes(dtype));
  const auto buffer = [&](const Shape& shape) {
    OwnedTensor result(dtype, shape, 3);
    for (int64_t i = 0; i < result.view().num_elements(); ++i) set(result, i, NAN);
    return result;
  };
  const Shape q_wide = {c.rows, c.queries, first + q_width}, kv_wide = {c.rows, problem.keys, 2 * k_width};
  const OwnedTensor q_buffer = buffer(q_wide), kv_buffer = buffer(kv_wide);
  const OwnedTensor dq_buffer = buffer(q_wide), d_kv_buffer = buffer(kv_wide);
  const auto q_view = [&](const Tensor& wide) { return wide.slice(2, first, q_width).reshape(q_shape); };
  const auto kv_view = [&](const Tensor& wide, int64_t begin) {
    return wide.slice(2, begin, k_width).reshape(k_shape);
  };
  const auto fill = [](const Tensor& tensor, const std::vector<double>& from) {
    for (size_t i = 0; i < from.size(); ++i) set(tensor, static_cast<int64_t>(i), from[i]);
  };
  AttentionForward args;
  args.q = q_view(q_buffer), args.k = kv_view(kv_buffer, 0), args.v = kv_view(kv_buffer, k_width);
  fill(args.q, problem.q), fill(args.k, problem.k), fill(args.v, problem.v);
  const OwnedTensor first_key(DType::i32, {c.rows, c.queries}), d_out(dtype, q_shape);
  fill(first_key, {problem.first_key.begin(), problem.first_key.end()});
  fill(d_out, problem.d_out);
  if (!c.starts.empty()) args.first_key = first_key;
  const OwnedTensor out = filled<S>(q_shape, NAN), log_sum_exp = filled<T>({c.rows, c.heads, c.queries}, NAN);
  args.out = out, args.log_sum_exp = log_sum_exp;
  args.query_offset = c.offset, args.scale = problem.scale;
  Stream stream = sizeof(S) == 8 ? Stream(threads) : test_stream(threads);
  run_and_wait(stream, args);
  AttentionBackward back;
  back.q = args.q, back.k = args.k, back.v = args.v, back.first_key = args.first_key, back.out = args.out;
  back.log_sum_exp = args.log_sum_exp, back.query_offset = c.offset, back.scale = problem.scale;
  back.d_out = d_out;
  back.dq = q_view(dq_buffer), back.dk = kv_view(d_kv_buffer, 0), back.dv = kv_view(d_kv_buffer, k_width);
  run_and_wait(stream, back);
  EXPECT_TRUE(dq_buffer.padding_intact() && d_kv_buffer.padding_intact());
  const auto result = [](const Tensor& from) {
    std::vector<T> to(z(from.num_elements()));
    for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<T>(get(from, static_cast<int64_t>(i)));
    return to;
  };
  return {result(out), result(log_sum_exp), result(back.dq), result(back.dk), result(back.dv)};
}

// Largest difference over the largest reference value; inputs are of order one, so that less than 0.1 is
// small.
template <class A, class B>
double error(const std::vector<A>& got, const std::vector<B>& want) {
  double difference = 0, scale = 0.5;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(e <= difference)) difference = e;  // keeps a NaN
    scale = std::max(scale, std::abs(static_cast<double>(want[i])));
  }
  return difference / scale;
}

const std::vector<Case> kCases = {
    {.rows = 2, .queries = 37, .heads = 2, .key_heads = 2, .p = 16, .offset = 0, .starts = {}},
    {.rows = 1, .queries = 130, .heads = 4, .key_heads = 2, .p = 8, .offset = 0, .starts = {}},
    {.rows = 1, .queries = 64, .heads = 3, .key_heads = 1, .p = 32, .offset = 0, .starts = {}},
    {.rows = 2, .queries = 70, .heads = 4, .key_heads = 2, .p = 6, .offset = 0, .starts = {0, 3, 64}},
    {.rows = 1, .queries = 70, .heads = 2, .key_heads = 2, .p = 100, .offset = 0, .starts = {}},
    {.rows = 2, .queries = 1, .heads = 2, .key_heads = 1, .p = 10, .offset = 90, .starts = {40}, .spare = 3},
    {.rows = 2,
     .queries = 200,
     .heads = 2,
     .key_heads = 1,
     .p = 16,
     .offset = 0,
     .starts = {0, 3, 4, 63, 64, 150}},
    {.rows = 1, .queries = 260, .heads = 1, .key_heads = 1, .p = 64, .offset = 0, .starts = {129, 191}},
    {.rows = 1, .queries = 70, .heads = 2, .key_heads = 2, .p = 128, .offset = 0, .starts = {70}},
    {.rows = 2, .queries = 20, .heads = 4, .key_heads = 2, .p = 8, .offset = 50, .starts = {}, .spare = 9},
    {.rows = 2,
     .queries = 70,
     .heads = 2,
     .key_heads = 1,
     .p = 8,
     .offset = 61,
     .starts = {30, 100},
     .spare = 70},
    {.rows = 2, .queries = 1, .heads = 4, .key_heads = 2, .p = 24, .offset = 0, .starts = {}},
    {.rows = 2, .queries = 1, .heads = 6, .key_heads = 2, .p = 16, .offset = 150, .starts = {40}, .spare = 3},
    {.rows = 1,
     .queries = 150,
     .heads = 1,
     .key_heads = 1,
     .p = 16,
     .offset = 0,
     .starts = {},
     .sharpness = 60},
};

class Attention : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(kCases));

TEST_P(Attention, ForwardEqualsExplicitSoftmax) {
  if (!on_cpu()) GTEST_SKIP();
  const Problem problem(GetParam());
  const Reference<double> want = softmax_attention(problem, problem.q, problem.k, problem.v);
  const Results<double> f64 = evaluate<double>(problem);
  EXPECT_LT(error(f64.out, want.out), 1e-13);
  EXPECT_LT(error(f64.log_sum_exp, want.log_sum_exp), 1e-13);
  // The rounding of a score is as large as the score: it enters the exponent.
  const Results<float> f32 = evaluate<float>(problem);
  EXPECT_LT(error(f32.out, want.out), 1e-6 * std::max(1.0, problem.c.sharpness));
  EXPECT_LT(error(f32.log_sum_exp, want.log_sum_exp), 1e-6);
}

TEST_P(Attention, GradientsEqualComplexStep) {
  if (!on_cpu()) GTEST_SKIP();
  Problem problem(GetParam());
  const Results<double> f64 = evaluate<double>(problem);
  using Complex = std::vector<std::complex<double>>;
  for (int input = 0; input < 3; ++input) {
    const std::vector<double>& gradient = input == 0 ? f64.dq : input == 1 ? f64.dk : f64.dv;
    // A dense random direction sees an error in any element.
    for (int direction = 0; direction < 2; ++direction) {
      const std::vector<double> step = problem.normal(static_cast<int64_t>(gradient.size()));
      Complex in[] = {Complex(problem.q.begin(), problem.q.end()),
                      Complex(problem.k.begin(), problem.k.end()),
                      Complex(problem.v.begin(), problem.v.end())};
      const double h = 1e-60;
      for (size_t i = 0; i < step.size(); ++i) in[input][i] += std::complex<double>(0, h * step[i]);
      const Complex out = softmax_attention(problem, in[0], in[1], in[2]).out;
      double want = 0, got = 0, scale = 0;
      for (size_t i = 0; i < out.size(); ++i) want += out[i].imag() / h * problem.d_out[i];
      for (size_t i = 0; i < step.size(); ++i) {
        got += gradient[i] * step[i];
        scale += std::abs(gradient[i] * step[i]);
      }
      EXPECT_NEAR(got, want, 1e-12 * scale + 1e-12) << "qkv"[input];
    }
  }
}

TEST_P(Attention, FloatGradientsEqualDouble) {
  if (!on_cpu()) GTEST_SKIP();
  const Problem problem(GetParam());
  const Results<double> want = evaluate<double>(problem);
  const Results<float> got = evaluate<float>(problem);
  const double bound = 2e-6 * std::max(1.0, problem.c.sharpness);
  EXPECT_LT(error(got.dq, want.dq), bound);
  EXPECT_LT(error(got.dk, want.dk), bound);
  EXPECT_LT(error(got.dv, want.dv), bound);
}

// Thread counts for which the backward is cut by key heads, and by blocks in two passes.
template <class S>
void expect_same_bits(const Problem& problem) {
  const Results<float> one = evaluate<S>(problem, 1);
  for (int threads : {1, 2, 3, 5}) {
    const Results<float> many = evaluate<S>(problem, threads);
    EXPECT_EQ(one.out, many.out);
    EXPECT_EQ(one.log_sum_exp, many.log_sum_exp);
    EXPECT_EQ(one.dq, many.dq);
    EXPECT_EQ(one.dk, many.dk);
    EXPECT_EQ(one.dv, many.dv);
  }
}

TEST_P(Attention, SameBitsOnAnyNumberOfThreads) {
  if (!on_cpu()) GTEST_SKIP();
  expect_same_bits<float>(Problem(GetParam()));
}

// bf16 on every device, so at sizes that all of them have; few tokens, for devices that are slow to emulate.
const std::vector<Case> kRoundedCases = {
    {.rows = 2, .queries = 37, .heads = 2, .key_heads = 1, .p = 64, .offset = 0, .starts = {}},
    {.rows = 1,
     .queries = 130,
     .heads = 2,
     .key_heads = 1,
     .p = 64,
     .offset = 0,
     .starts = {0, 3, 4, 63, 64, 127}},
    {.rows = 1, .queries = 70, .heads = 2, .key_heads = 2, .p = 128, .offset = 0, .starts = {69}},
    {.rows = 1, .queries = 20, .heads = 4, .key_heads = 2, .p = 64, .offset = 50, .starts = {}, .spare = 9},
    {.rows = 2,
     .queries = 67,
     .heads = 2,
     .key_heads = 1,
     .p = 64,
     .offset = 61,
     .starts = {30, 100},
     .spare = 70},
    {.rows = 2, .queries = 1, .heads = 4, .key_heads = 2, .p = 64, .offset = 90, .starts = {40}, .spare = 3},
    {.rows = 1, .queries = 1, .heads = 2, .key_heads = 2, .p = 128, .offset = 0, .starts = {}},
    {.rows = 1,
     .queries = 80,
     .heads = 1,
     .key_heads = 1,
     .p = 64,
     .offset = 0,
     .starts = {},
     .sharpness = 20},
};

class RoundedAttention : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, RoundedAttention, testing::ValuesIn(kRoundedCases));

// sqrt(sum of squared differences / sum of squares).
double relative_rms(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, scale = 1e-60;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = static_cast<double>(got[i]) - want[i];
    difference += e * e;
    scale += want[i] * want[i];
  }
  return std::sqrt(difference / scale);
}

// Against the definition in double on the same rounded inputs. Scores are sums in f32 of exact products; what
// is rounded to bf16 are weights, gradients of scores and results, each by some 1.7e-3 of itself in the root
// mean square. The gradient of a score is its weight times a difference; where one weight is nearly 1 the
// difference is small beside its terms, one of which comes from the rounded `out`: hence `gradients`.
void expect_rounded_results(Problem problem) {
  problem.round_activations();
  const Reference<double> want = softmax_attention(problem, problem.q, problem.k, problem.v);
  const Results<double> f64 = evaluate<double>(problem);
  const Results<float> got = evaluate<BFloat16>(problem);
  const double bound = 5e-3, gradients = bound * std::max(1.0, problem.c.sharpness / 4);
  EXPECT_LT(relative_rms(got.out, want.out), bound);
  EXPECT_LT(error(got.log_sum_exp, want.log_sum_exp), 1e-5);
  EXPECT_LT(relative_rms(got.dv, f64.dv), bound);
  if (problem.c.queries + problem.c.offset == 1) return;  // one key: gradients of its score are zero
  EXPECT_LT(relative_rms(got.dq, f64.dq), gradients);
  EXPECT_LT(relative_rms(got.dk, f64.dk), gradients);
}

TEST_P(RoundedAttention, EqualsExplicitSoftmaxAndItsGradients) {
  expect_rounded_results(Problem(GetParam()));
}

TEST_P(RoundedAttention, SameBitsOnAnyNumberOfThreads) {
  expect_same_bits<BFloat16>(Problem(GetParam()));
}

// Sizes of the CPU alone: bf16 there too, but for widths that it does not take.
TEST_P(Attention, RoundedEqualsExplicitSoftmaxAndItsGradients) {
  if (!on_cpu() || GetParam().p % 8 != 0) GTEST_SKIP();
  expect_rounded_results(Problem(GetParam()));
}

}  // namespace
}  // namespace transxssm
