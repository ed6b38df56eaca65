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

// The kernels on a problem; q, k and v are slices of wider buffers, and so are their gradients.
template <class T>
Results<T> evaluate(const Problem& problem, int threads = 1) {
  const Case& c = problem.c;
  const DType dtype = DTypeOf<T>::value;
  const Shape q_shape = {c.rows, c.queries, c.heads, c.p}, k_shape = {c.rows, problem.keys, c.key_heads, c.p};
  const int64_t q_width = c.heads * c.p, k_width = c.key_heads * c.p, kv_width = 2 * k_width + 1;
  std::vector<T> q_buffer(z(c.rows * c.queries * (q_width + 3)), T(NAN)), dq_buffer = q_buffer;
  std::vector<T> kv_buffer(z(c.rows * problem.keys * kv_width), T(NAN)), d_kv_buffer = kv_buffer;
  const auto q_view = [&](std::vector<T>& buffer) {
    return Tensor(buffer.data(), dtype, {c.rows, c.queries, q_width + 3})
        .slice(2, 1, q_width)
        .reshape(q_shape);
  };
  const auto kv_view = [&](std::vector<T>& buffer, int64_t begin) {
    return Tensor(buffer.data(), dtype, {c.rows, problem.keys, kv_width})
        .slice(2, begin, k_width)
        .reshape(k_shape);
  };
  const auto cast = [](const std::vector<double>& x) { return std::vector<T>(x.begin(), x.end()); };
  std::vector<T> q = cast(problem.q), k = cast(problem.k), v = cast(problem.v), d_out = cast(problem.d_out);
  std::vector<int32_t> first_key = problem.first_key;
  copy(Tensor(q.data(), dtype, q_shape), q_view(q_buffer));
  copy(Tensor(k.data(), dtype, k_shape), kv_view(kv_buffer, 0));
  copy(Tensor(v.data(), dtype, k_shape), kv_view(kv_buffer, k_width));
  Results<T> results;
  results.out.assign(q.size(), T(NAN));
  results.log_sum_exp.assign(z(c.rows * c.heads * c.queries), T(NAN));
  results.dq = results.out;
  results.dk.assign(k.size(), T(NAN));
  results.dv = results.dk;
  AttentionForward args;
  args.q = q_view(q_buffer), args.k = kv_view(kv_buffer, 0), args.v = kv_view(kv_buffer, k_width);
  if (!c.starts.empty()) args.first_key = Tensor(first_key.data(), DType::i32, {c.rows, c.queries});
  args.out = Tensor(results.out.data(), dtype, q_shape);
  args.log_sum_exp = Tensor(results.log_sum_exp.data(), dtype, {c.rows, c.heads, c.queries});
  args.query_offset = c.offset, args.scale = problem.scale;
  Stream stream(threads);
  run(stream, args);
  AttentionBackward back;
  back.q = args.q, back.k = args.k, back.v = args.v, back.first_key = args.first_key, back.out = args.out;
  back.log_sum_exp = args.log_sum_exp, back.query_offset = c.offset, back.scale = problem.scale;
  back.d_out = Tensor(d_out.data(), dtype, q_shape);
  back.dq = q_view(dq_buffer), back.dk = kv_view(d_kv_buffer, 0), back.dv = kv_view(d_kv_buffer, k_width);
  run(stream, back);
  copy(back.dq, Tensor(results.dq.data(), dtype, q_shape));
  copy(back.dk, Tensor(results.dk.data(), dtype, k_shape));
  copy(back.dv, Tensor(results.dv.data(), dtype, k_shape));
  return results;
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
  const Problem problem(GetParam());
  const Results<double> want = evaluate<double>(problem);
  const Results<float> got = evaluate<float>(problem);
  const double bound = 2e-6 * std::max(1.0, problem.c.sharpness);
  EXPECT_LT(error(got.dq, want.dq), bound);
  EXPECT_LT(error(got.dk, want.dk), bound);
  EXPECT_LT(error(got.dv, want.dv), bound);
}

// Thread counts for which the backward is cut by key heads, and by blocks in two passes.
TEST_P(Attention, SameBitsOnAnyNumberOfThreads) {
  const Problem problem(GetParam());
  const Results<float> one = evaluate<float>(problem, 1);
  for (int threads : {2, 3, 5}) {
    const Results<float> many = evaluate<float>(problem, threads);
    EXPECT_EQ(one.out, many.out);
    EXPECT_EQ(one.log_sum_exp, many.log_sum_exp);
    EXPECT_EQ(one.dq, many.dq);
    EXPECT_EQ(one.dk, many.dk);
    EXPECT_EQ(one.dv, many.dv);
  }
}

}  // namespace
}  // namespace transxssm
