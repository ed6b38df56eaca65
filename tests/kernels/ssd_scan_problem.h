// The chunked scan against the recurrence itself, written once for any scalar; derivatives by the complex
// step (Squire & Trapp 1998), exact to rounding.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <ostream>
#include <random>
#include <vector>

#include "kernels/ssd_scan.h"
#include "tests/support/tensors.h"

namespace transxssm::ssd_test {

enum Input { X, BB, CC, U, BIAS, A_LOG, SKIP, STATE, kInputs };
inline const char* const kInputNames[] = {"x", "b", "c", "u", "dt_bias", "a_log", "d_skip", "initial_state"};

struct Case {
  int64_t rows, tokens, heads, groups, p, n, chunk;
  std::vector<int64_t> starts;          // tokens of row 0; of the other rows one later each
  bool rotation = true, extras = true;  // extras: d_skip, c_scale, states in and out
  double u_offset = 0, decay = 1;
};

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << "B" << c.rows << " T" << c.tokens << " H" << c.heads << " G" << c.groups << " P" << c.p << " N"
      << c.n << " Q" << c.chunk << " starts";
  for (int64_t s : c.starts) out << " " << s;
  return out << (c.rotation ? " rotated" : "") << (c.extras ? " extras" : "") << " u+" << c.u_offset;
}

struct Problem {
  explicit Problem(const Case& shape) : c(shape), random(7) {
    const int64_t bt = c.rows * c.tokens;
    const int64_t sizes[] = {bt * c.heads * c.p,
                             bt * c.groups * c.n,
                             bt * c.groups * c.n,
                             bt * c.heads,
                             c.heads,
                             c.heads,
                             c.heads,
                             c.rows * c.heads * c.p * c.n};
    for (int i = 0; i < kInputs; ++i) value[i] = normal(sizes[i]);
    for (double& u : value[U]) u = static_cast<float>(u * 1.5 + c.u_offset);
    for (double& a : value[A_LOG]) a = static_cast<float>(0.3 * a + std::log(c.decay));
    c_scale = normal(bt);
    for (double& s : c_scale) s = static_cast<float>(1 + 0.1 * s);
    dy = normal(sizes[X]);
    d_final = normal(sizes[STATE]);
    start.assign(static_cast<size_t>(bt), 0);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t s : c.starts)
        if (s + r < c.tokens) start[static_cast<size_t>(r * c.tokens + s + r)] = 1;
  }
  // Values a float holds, so that f32 and f64 start from the same problem.
  std::vector<double> normal(int64_t size) {
    std::vector<double> v(static_cast<size_t>(size));
    for (double& x : v) x = std::normal_distribution<float>()(random);
    return v;
  }
  // Activations become values that a bf16 holds.
  void round_activations() {
    for (std::vector<double>* values : {&value[X], &value[BB], &value[CC], &dy})
      for (double& v : *values) v = static_cast<double>(to_float(to_bfloat16(static_cast<float>(v))));
  }
  bool present(int input) const { return c.extras || (input != SKIP && input != STATE); }
  double angle(int64_t position, int64_t j) const {
    return static_cast<double>(position) *
           std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(c.n));
  }

  Case c;
  std::mt19937 random;
  std::vector<double> value[kInputs], c_scale, dy, d_final;
  std::vector<uint8_t> start;
  double gradient_before = 0;  // of the parameters, which add up over calls
};

template <class S>
struct Outputs {
  std::vector<S> y, final_state;
};

// v <- R(position) v
template <class S>
void rotate(const Problem& problem, int64_t position, std::vector<S>& v, size_t at) {
  if (!problem.c.rotation) return;
  const size_t half = static_cast<size_t>(problem.c.n / 2);
  for (size_t j = 0; j < half; ++j) {
    const double angle = problem.angle(position, static_cast<int64_t>(j));
    const S lo = v[at + j], hi = v[at + j + half];
    v[at + j] = lo * std::cos(angle) - hi * std::sin(angle);
    v[at + j + half] = lo * std::sin(angle) + hi * std::cos(angle);
  }
}

// Token after token, with positions counted from the start of the row.
template <class S>
Outputs<S> recurrence(const Problem& problem, const std::vector<S> (&in)[kInputs]) {
  const Case& c = problem.c;
  const auto z = [](int64_t i) { return static_cast<size_t>(i); };
  Outputs<S> out;
  out.y.assign(in[X].size(), S(0));
  out.final_state.assign(in[STATE].size(), S(0));
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t g = h * c.groups / c.heads;
      const S a = -std::exp(in[A_LOG][z(h)]);
      std::vector<S> state(z(c.p * c.n), S(0)), b(z(c.n)), cc(z(c.n));
      if (c.extras)
        for (size_t i = 0; i < state.size(); ++i) state[i] = in[STATE][z((r * c.heads + h) * c.p * c.n) + i];
      for (int64_t t = 0; t < c.tokens; ++t) {
        const int64_t row = r * c.tokens + t;
        const S v = in[U][z(row * c.heads + h)] + in[BIAS][z(h)];
        const S dt = std::real(v) > 20 ? v : std::log(S(1) + std::exp(v));
        for (int64_t j = 0; j < c.n; ++j) {
          b[z(j)] = in[BB][z((row * c.groups + g) * c.n + j)];
          cc[z(j)] = in[CC][z((row * c.groups + g) * c.n + j)] * (c.extras ? problem.c_scale[z(row)] : 1.0);
        }
        rotate(problem, t, b, 0);
        rotate(problem, t, cc, 0);
        const S decay = problem.start[z(row)] ? S(0) : std::exp(a * dt);
        for (int64_t p = 0; p < c.p; ++p) {
          const S x = in[X][z((row * c.heads + h) * c.p + p)];
          S y = c.extras ? in[SKIP][z(h)] * x : S(0);
          for (int64_t j = 0; j < c.n; ++j) {
            S& s = state[z(p * c.n + j)];
            s = decay * s + dt * x * b[z(j)];
            y += s * cc[z(j)];
          }
          out.y[z((row * c.heads + h) * c.p + p)] = y;
        }
      }
      for (int64_t p = 0; p < c.p; ++p) rotate(problem, -c.tokens, state, z(p * c.n));
      std::copy(state.begin(), state.end(), out.final_state.begin() + (r * c.heads + h) * c.p * c.n);
    }
  }
  return out;
}

template <class T>
struct Results {
  std::vector<T> y, final_state, chunk_states, d[kInputs];
};

// How the kernels are called.
struct Call {
  int threads = 1;
  bool fused =
      false;  // x, b, c, u and their gradients are slices of one buffer a token wide (u: if of one type)
  bool backward = true;
  bool rounded_states = false;  // chunk_states in bf16
};

// The kernels on a problem: f64 on the CPU, activations of other types on the device of the test.
template <class S, class T = Wide<S>>
Results<T> evaluate(const Problem& problem, const Call& call = {}) {
  const Case& c = problem.c;
  const DType real = DTypeOf<T>::value, storage = DTypeOf<S>::value;
  const auto tensor = [](const std::vector<double>& values, DType dtype, const Shape& shape) {
    OwnedTensor result(dtype, shape);
    for (size_t i = 0; i < values.size(); ++i) set(result, static_cast<int64_t>(i), values[i]);
    return result;
  };
  const Shape shapes[] = {{c.rows, c.tokens, c.heads, c.p},
                          {c.rows, c.tokens, c.groups, c.n},
                          {c.rows, c.tokens, c.groups, c.n},
                          {c.rows, c.tokens, c.heads},
                          {c.heads},
                          {c.heads},
                          {c.heads},
                          {c.rows, c.heads, c.p, c.n}};
  const int64_t widths[] = {c.heads * c.p, c.groups * c.n, c.groups * c.n, c.heads};
  const int64_t width = widths[X] + 2 * widths[BB] + widths[U];
  // One element, or what the device aligns rows to, before the first slice.
  const int64_t first = std::max<int64_t>(1, test_device().row_bytes / dtype_bytes(storage));
  const auto wide = [&] {
    OwnedTensor buffer(storage, {c.rows, c.tokens, first + width}, 3);
    for (int64_t i = 0; i < buffer.view().num_elements(); ++i) set(buffer, i, NAN);
    return buffer;
  };
  const OwnedTensor in_wide = wide(), d_wide = wide();
  OwnedTensor values[kInputs], gradients[kInputs];
  Tensor in[kInputs], d[kInputs];
  int64_t offset = first;
  for (int i = 0; i < kInputs; ++i) {
    if (!problem.present(i)) continue;
    const DType dtype = i <= CC ? storage : real;
    const double before = i >= BIAS && i <= SKIP ? problem.gradient_before : NAN;
    values[i] = tensor(problem.value[i], dtype, shapes[i]);
    gradients[i] = tensor(std::vector<double>(problem.value[i].size(), before), dtype, shapes[i]);
    in[i] = values[i], d[i] = gradients[i];
    if (i > U || dtype != storage || !call.fused) continue;
    in[i] = in_wide.view().slice(2, offset, widths[i]).reshape(shapes[i]);
    d[i] = d_wide.view().slice(2, offset, widths[i]).reshape(shapes[i]);
    copy(values[i], in[i]);
    offset += widths[i];
  }
  std::vector<double> cosines, sines;
  for (int64_t i = 0; i <= c.chunk; ++i) {
    for (int64_t j = 0; j < c.n / 2; ++j) {
      cosines.push_back(std::cos(problem.angle(i, j)));
      sines.push_back(std::sin(problem.angle(i, j)));
    }
  }
  const OwnedTensor cos = tensor(cosines, real, {c.chunk + 1, c.n / 2});
  const OwnedTensor sin = tensor(sines, real, {c.chunk + 1, c.n / 2});
  const OwnedTensor c_scale = tensor(problem.c_scale, real, {c.rows, c.tokens});
  const OwnedTensor start =
      tensor({problem.start.begin(), problem.start.end()}, DType::u8, {c.rows, c.tokens});
  const OwnedTensor y = filled<S>(shapes[X], NAN), final_state = filled<T>(shapes[STATE], NAN);
  const int64_t chunks = ssd_num_chunks(c.tokens, c.chunk);
  const OwnedTensor chunk_states(call.rounded_states ? DType::bf16 : real,
                                 {c.rows, chunks, c.heads, c.p, c.n});
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
  if (c.extras) args.final_state = final_state;
  if (call.backward) args.chunk_states = chunk_states;
  Stream stream = sizeof(S) == 8 ? Stream(call.threads) : test_stream(call.threads);
  run_and_wait(stream, args);
  const OwnedTensor dy = tensor(problem.dy, storage, shapes[X]),
                    d_final = tensor(problem.d_final, real, shapes[STATE]);
  if (call.backward) {
    SsdBackward back;
    back.in = args.in, back.chunk_states = args.chunk_states, back.dy = dy;
    if (c.extras) back.d_final_state = d_final;
    back.dx = d[X], back.db = d[BB], back.dc = d[CC], back.du = d[U], back.d_dt_bias = d[BIAS],
    back.d_a_log = d[A_LOG];
    back.d_d_skip = d[SKIP], back.d_initial_state = d[STATE];
    run_and_wait(stream, back);
  }
  const auto result = [](const Tensor& from) {
    std::vector<T> to(static_cast<size_t>(from.num_elements()));
    for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<T>(get(from, static_cast<int64_t>(i)));
    return to;
  };
  Results<T> results{result(y), result(final_state), result(chunk_states), {}};
  for (int i = 0; i < kInputs; ++i)
    if (problem.present(i)) results.d[i] = result(d[i]);
  EXPECT_TRUE(d_wide.padding_intact());
  return results;
}

// Largest difference over the largest reference value (in double, floats' underflow is zero).
template <class A, class B>
double error(const std::vector<A>& got, const std::vector<B>& want) {
  double difference = 0, scale = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(e <= difference)) difference = e;  // keeps a NaN
    scale = std::max(scale, std::abs(static_cast<double>(want[i])));
  }
  return difference / scale;
}

// sqrt(sum of squared differences / sum of squares).
template <class A, class B>
double relative_rms(const std::vector<A>& got, const std::vector<B>& want) {
  double difference = 0, scale = 1e-60;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    difference += e * e;
    scale += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return std::sqrt(difference / scale);
}

// Against the definition in double on the same rounded inputs. Rounding to bf16 moves a number by at most
// 2^-8 of itself, by some 1.7e-3 in the root mean square; outputs are behind up to four such roundings (C, B,
// weight or state, result), which are independent and together stay near 3.4e-3.
inline constexpr double kRoundedBound = 5e-3;

}  // namespace transxssm::ssd_test
