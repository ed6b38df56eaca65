// Our own attention kernels against the softmax and its derivative written out in f64.
#include "kernels/cuda/attention_flash.h"

#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/support/tensors.h"

namespace transxssm {
namespace {

struct Case {
  int64_t rows, queries, heads, key_heads, p;
  int64_t offset = 0;
  std::vector<int64_t> starts = {};  // documents begin at these keys of row 0; one later in each further row
  int64_t spare = 0;                 // keys behind the last one that a query sees: not a number
  double sharpness = 1;              // factor of the scores
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << "B" << c.rows << " Tq" << c.queries << " H" << c.heads << " KV" << c.key_heads << " P" << c.p
      << " offset " << c.offset << " starts";
  for (int64_t start : c.starts) out << " " << start;
  return out;
}

// Tensors of one case; q, k and v are columns of wider rows, and so are their gradients.
struct Problem {
  explicit Problem(const Case& shape)
      : c(shape), keys(c.queries + c.offset + c.spare), scale(c.sharpness / std::sqrt(double(c.p))) {
    const int64_t width = c.heads * c.p, key_width = c.key_heads * c.p;
    q_rows = random_normal<BFloat16>({c.rows, c.queries, width}, 1, 1, 0, 8);
    kv_rows = random_normal<BFloat16>({c.rows, keys, 2 * key_width}, 2, 1, 0, 8);
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t i = (keys - c.spare) * 2 * key_width; i < keys * 2 * key_width; ++i)
        set(kv_rows, row * keys * 2 * key_width + i, NAN);
    dq_rows = filled<BFloat16>({c.rows, c.queries, width}, NAN, 8);
    d_kv_rows = filled<BFloat16>({c.rows, keys, 2 * key_width}, NAN, 8);
    d_out = random_normal<BFloat16>({c.rows, c.queries, c.heads, c.p}, 3);
    out = filled<BFloat16>({c.rows, c.queries, c.heads, c.p}, NAN);
    log_sum_exp = filled<float>({c.rows, c.heads, c.queries}, NAN);
    first_key = zeros<int32_t>({c.rows, c.queries});
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t i = 0; i < c.queries; ++i)
        for (int64_t start : c.starts)
          if (start + row <= i + c.offset) set(first_key, row * c.queries + i, double(start + row));
    const auto heads = [&](const Tensor& rows, int64_t begin, int64_t count) {
      return rows.slice(2, begin * c.p, count * c.p).reshape({c.rows, rows.size(1), count, c.p});
    };
    forward = {.q = heads(q_rows, 0, c.heads),
               .k = heads(kv_rows, 0, c.key_heads),
               .v = heads(kv_rows, c.key_heads, c.key_heads),
               .first_key = c.starts.empty() ? Tensor() : first_key.view(),
               .out = out,
               .log_sum_exp = log_sum_exp,
               .query_offset = c.offset,
               .scale = scale};
    backward = {.q = forward.q,
                .k = forward.k,
                .v = forward.v,
                .first_key = forward.first_key,
                .out = out,
                .log_sum_exp = log_sum_exp,
                .d_out = d_out,
                .dq = heads(dq_rows, 0, c.heads),
                .dk = heads(d_kv_rows, 0, c.key_heads),
                .dv = heads(d_kv_rows, c.key_heads, c.key_heads),
                .query_offset = c.offset,
                .scale = scale};
  }
  void run() {
    Stream stream = test_stream();
    cuda::run_flash(stream, forward);
    cuda::run_flash(stream, backward);
    stream.synchronize();
  }
  // By what the device chooses: on a Hopper GPU with cuDNN both directions are cuDNN's, if the rows are
  // whole.
  void run_chosen() {
    Stream stream = test_stream();
    backward.deterministic = false;
    cuda::run(stream, forward);
    cuda::run(stream, backward);
    stream.synchronize();
  }

  Case c;
  int64_t keys;
  double scale;
  OwnedTensor q_rows, kv_rows, dq_rows, d_kv_rows, d_out, out, log_sum_exp, first_key;
  AttentionForward forward;
  AttentionBackward backward;
};

struct Expected {
  std::vector<double> out, log_sum_exp, dq, dk, dv;
};

Expected softmax_attention(const Problem& problem) {
  const Case& c = problem.c;
  const std::vector<double> q = values(problem.forward.q), k = values(problem.forward.k),
                            v = values(problem.forward.v), d_out = values(problem.d_out);
  Expected e{.out = std::vector<double>(q.size()),
             .log_sum_exp = {},
             .dq = std::vector<double>(q.size()),
             .dk = std::vector<double>(k.size()),
             .dv = std::vector<double>(k.size())};
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t i = 0; i < c.p; ++i) sum += a[i] * b[i];
    return sum;
  };
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t head = 0; head < c.heads; ++head)
      for (int64_t i = 0; i < c.queries; ++i) {
        const auto at = static_cast<size_t>(((row * c.queries + i) * c.heads + head) * c.p);
        const auto first = static_cast<int64_t>(problem.first_key[row * c.queries + i]);
        const auto key_at = [&](int64_t key) {
          const int64_t key_head = head * c.key_heads / c.heads;
          return static_cast<size_t>(((row * problem.keys + key) * c.key_heads + key_head) * c.p);
        };
        std::vector<double> weight;
        double sum = 0, max = -INFINITY;
        for (int64_t j = first; j <= i + c.offset; ++j) {
          weight.push_back(dot(&q[at], &k[key_at(j)]) * problem.scale);
          max = std::max(max, weight.back());
        }
        for (double& w : weight) sum += (w = std::exp(w - max));
        e.log_sum_exp.push_back(max + std::log(sum));
        double mean = 0;
        for (size_t j = 0; j < weight.size(); ++j) {
          weight[j] /= sum;
          const double* value = &v[key_at(first + static_cast<int64_t>(j))];
          for (int64_t x = 0; x < c.p; ++x) e.out[at + size_t(x)] += weight[j] * value[x];
          mean += weight[j] * dot(&d_out[at], value);
        }
        for (size_t j = 0; j < weight.size(); ++j) {
          const size_t key = key_at(first + static_cast<int64_t>(j));
          const double d_score = weight[j] * (dot(&d_out[at], &v[key]) - mean) * problem.scale;
          for (size_t x = 0; x < static_cast<size_t>(c.p); ++x) {
            e.dq[at + x] += d_score * k[key + x];
            e.dk[key + x] += d_score * q[at + x];
            e.dv[key + x] += weight[j] * d_out[at + x];
          }
        }
      }
  return e;
}

// Root mean square of the difference, relative to that of the expected values; infinite for a NaN.
double rms_error(const Tensor& got, const std::vector<double>& expected) {
  double difference = 0, magnitude = 1e-6;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = get(got, static_cast<int64_t>(i)) - expected[i];
    difference += d * d;
    magnitude += expected[i] * expected[i];
  }
  return difference == difference ? std::sqrt(difference / magnitude) : INFINITY;
}

const std::vector<Case> kCases = {
    {.rows = 2, .queries = 37, .heads = 2, .key_heads = 2, .p = 16},
    {.rows = 1, .queries = 275, .heads = 4, .key_heads = 2, .p = 16},
    {.rows = 2, .queries = 200, .heads = 2, .key_heads = 1, .p = 16, .starts = {0, 3, 4, 63, 64, 150}},
    {.rows = 1, .queries = 330, .heads = 1, .key_heads = 1, .p = 32, .starts = {127, 191, 300}},
    {.rows = 1, .queries = 140, .heads = 2, .key_heads = 1, .p = 64},
    {.rows = 1, .queries = 200, .heads = 1, .key_heads = 1, .p = 64, .starts = {17, 100}},
    {.rows = 1, .queries = 140, .heads = 1, .key_heads = 1, .p = 128},
    {.rows = 1, .queries = 70, .heads = 2, .key_heads = 1, .p = 128, .starts = {33}},
    {.rows = 2, .queries = 20, .heads = 2, .key_heads = 1, .p = 16, .offset = 150, .spare = 9},
    {.rows = 2,
     .queries = 70,
     .heads = 2,
     .key_heads = 1,
     .p = 16,
     .offset = 61,
     .starts = {30, 100},
     .spare = 200},
    {.rows = 2, .queries = 1, .heads = 4, .key_heads = 2, .p = 64},
    {.rows = 2, .queries = 1, .heads = 6, .key_heads = 2, .p = 16, .offset = 450, .starts = {40}, .spare = 3},
    {.rows = 1, .queries = 150, .heads = 1, .key_heads = 1, .p = 16, .sharpness = 60},
    // Keys cut into parts; a document that leaves all but one part without keys.
    {.rows = 1, .queries = 1, .heads = 2, .key_heads = 1, .p = 64, .offset = 1100},
    {.rows = 1, .queries = 1, .heads = 1, .key_heads = 1, .p = 128, .offset = 1100, .starts = {1090}},
    {.rows = 2, .queries = 40, .heads = 1, .key_heads = 1, .p = 32, .offset = 600, .starts = {300, 620}},
};

class FlashAttention : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, FlashAttention, testing::ValuesIn(kCases));

void expect_equal(const Problem& problem) {
  const Expected want = softmax_attention(problem);
  // The mean of d_out v comes from the rounded output; where few keys matter, little is left beside it.
  const double bound = problem.c.sharpness > 1 ? 2e-2 : 8e-3;
  EXPECT_LT(rms_error(problem.out, want.out), 4e-3);
  EXPECT_LT(relative_error(problem.log_sum_exp, want.log_sum_exp), 2e-6);
  EXPECT_LT(rms_error(problem.backward.dq, want.dq), bound);
  EXPECT_LT(rms_error(problem.backward.dk, want.dk), bound);
  EXPECT_LT(rms_error(problem.backward.dv, want.dv), 5e-3);
  EXPECT_TRUE(problem.dq_rows.padding_intact() && problem.d_kv_rows.padding_intact());
}

TEST_P(FlashAttention, EqualsSoftmaxAndItsDerivative) {
  Problem problem(GetParam());
  problem.run();
  expect_equal(problem);
}

TEST(ChosenAttention, EqualsSoftmaxAndItsDerivative) {
  for (const Case& c : {Case{.rows = 2, .queries = 128, .heads = 2, .key_heads = 2, .p = 64},
                        Case{.rows = 1, .queries = 150, .heads = 2, .key_heads = 1, .p = 128}}) {
    SCOPED_TRACE(testing::Message() << c);
    Problem problem(c);
    problem.run_chosen();
    expect_equal(problem);
  }
}

TEST(FlashAttentionBits, SameTwice) {
  for (const Case& c : kCases) {
    if (c.p > 16) continue;  // one head dim is enough
    Problem one(c), two(c);
    one.run();
    two.run();
    EXPECT_TRUE(same_bits(one.out, two.out) && same_bits(one.backward.dq, two.backward.dq)) << c;
    EXPECT_TRUE(same_bits(one.backward.dk, two.backward.dk) && same_bits(one.backward.dv, two.backward.dv))
        << c;
  }
}

TEST(FlashAttentionErrors, SayWhatToChange) {
  Stream stream = test_stream();
  Problem problem({.rows = 1, .queries = 3, .heads = 1, .key_heads = 1, .p = 24});
  EXPECT_THROW(cuda::run_flash(stream, problem.forward), UsageError);
  const OwnedTensor x = zeros<float>({1, 3, 1, 16});
  EXPECT_THROW(cuda::run_flash(stream, AttentionForward{.q = x, .k = x, .v = x, .out = x}), UsageError);
}

}  // namespace
}  // namespace transxssm
