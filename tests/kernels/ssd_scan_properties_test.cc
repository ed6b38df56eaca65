// What holds of the scan whatever the numbers: pieces of a sequence, chunk lengths, sums that go on, aliases.
#include <gtest/gtest.h>

#include "tests/kernels/ssd_scan_problem.h"

namespace transxssm::ssd_test {
namespace {

TEST(SsdScanProperties, ChunkLengthDoesNotMatter) {
  Case c{
      .rows = 1, .tokens = 100, .heads = 2, .groups = 1, .p = 16, .n = 16, .chunk = 100, .starts = {30, 77}};
  const Results<double> want = evaluate<double>(Problem(c));
  for (int64_t chunk : {1, 7, 16, 64, 1000}) {
    c.chunk = chunk;
    const Results<double> got = evaluate<double>(Problem(c));
    EXPECT_LT(error(got.y, want.y), 1e-12) << chunk;
    EXPECT_LT(error(got.final_state, want.final_state), 1e-12) << chunk;
    for (int input = 0; input < kInputs; ++input)
      EXPECT_LT(error(got.d[input], want.d[input]), 1e-11) << chunk << " " << kInputNames[input];
  }
}

TEST(SsdScanProperties, ParameterGradientsAccumulate) {
  Problem problem(
      {.rows = 2, .tokens = 20, .heads = 2, .groups = 1, .p = 8, .n = 8, .chunk = 8, .starts = {5}});
  const Results<double> want = evaluate<double>(problem);
  problem.gradient_before = 3;
  const Results<double> got = evaluate<double>(problem);
  for (int input : {BIAS, A_LOG, SKIP}) {
    std::vector<double> sum = want.d[input];
    for (double& value : sum) value += 3;
    EXPECT_LT(error(got.d[input], sum), 1e-14) << kInputNames[input];
  }
}

// A sequence in pieces, the state handed on in place, as generation does; the pieces include single tokens.
template <class S>
void check_pieces(double bound) {
  const Case c{
      .rows = 2, .tokens = 44, .heads = 2, .groups = 2, .p = 64, .n = 64, .chunk = 16, .starts = {20, 33}};
  Problem whole(c);
  whole.round_activations();
  const Outputs<double> want = recurrence(whole, whole.value);
  std::vector<double> state = whole.value[STATE];
  int64_t begin = 0;
  for (int64_t tokens : {19, 1, 1, 12, 1, 10}) {
    Case part = c;
    part.tokens = tokens;
    Problem piece(part);
    for (int input = 0; input < kInputs; ++input) piece.value[input] = whole.value[input];
    const auto cut = [&](auto from, int64_t width) {
      decltype(from) to;
      for (int64_t r = 0; r < c.rows; ++r) {
        const auto at = from.begin() + (r * c.tokens + begin) * width;
        to.insert(to.end(), at, at + tokens * width);
      }
      return to;
    };
    piece.value[X] = cut(whole.value[X], c.heads * c.p);
    piece.value[BB] = cut(whole.value[BB], c.groups * c.n);
    piece.value[CC] = cut(whole.value[CC], c.groups * c.n);
    piece.value[U] = cut(whole.value[U], c.heads);
    piece.c_scale = cut(whole.c_scale, 1);
    piece.start = cut(whole.start, 1);
    piece.value[STATE] = state;
    const auto got = evaluate<S>(piece, {.backward = false});
    EXPECT_LT(relative_rms(got.y, cut(want.y, c.heads * c.p)), bound) << "tokens from " << begin;
    state.assign(got.final_state.begin(), got.final_state.end());
    begin += tokens;
  }
  EXPECT_LT(relative_rms(state, want.final_state), bound);
}

TEST(SsdScanProperties, StateCarriesAcrossCalls) {
  for_dtypes<double, BFloat16>([](auto type) {
    check_pieces<decltype(type)>(std::is_same_v<decltype(type), double> ? 1e-13 : kRoundedBound);
  });
}

TEST(SsdScanProperties, FinalStateMayReplaceInitialState) {
  for (int64_t tokens : {1, 40}) {
    const Case c{
        .rows = 1, .tokens = tokens, .heads = 1, .groups = 1, .p = 8, .n = 8, .chunk = 16, .starts = {}};
    const Problem problem(c);
    const Results<double> want = evaluate<double>(problem, {.backward = false});
    std::vector<double> x = problem.value[X], b = problem.value[BB], cc = problem.value[CC],
                        u = problem.value[U], bias = problem.value[BIAS], a_log = problem.value[A_LOG],
                        skip = problem.value[SKIP], state = problem.value[STATE], scale = problem.c_scale,
                        y(x.size()), cos, sin;
    for (int64_t i = 0; i <= c.chunk; ++i) {
      for (int64_t j = 0; j < c.n / 2; ++j) {
        cos.push_back(std::cos(problem.angle(i, j)));
        sin.push_back(std::sin(problem.angle(i, j)));
      }
    }
    const auto view = [](std::vector<double>& v, const Shape& shape) {
      return Tensor(v.data(), DType::f64, shape);
    };
    const Tensor states = view(state, {1, 1, 8, 8});
    Stream stream;
    run(stream, SsdForward{.in = {.x = view(x, {1, tokens, 1, 8}),
                                  .b = view(b, {1, tokens, 1, 8}),
                                  .c = view(cc, {1, tokens, 1, 8}),
                                  .u = view(u, {1, tokens, 1}),
                                  .dt_bias = view(bias, {1}),
                                  .a_log = view(a_log, {1}),
                                  .d_skip = view(skip, {1}),
                                  .cos = view(cos, {17, 4}),
                                  .sin = view(sin, {17, 4}),
                                  .c_scale = view(scale, {1, tokens}),
                                  .start = {},
                                  .initial_state = states,
                                  .chunk = 16},
                           .y = view(y, {1, tokens, 1, 8}),
                           .final_state = states,
                           .chunk_states = {}});
    EXPECT_EQ(y, want.y);
    EXPECT_EQ(state, want.final_state);
  }
}

}  // namespace
}  // namespace transxssm::ssd_test
