#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rmsnorm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// S: the residual stream, T: the branches. What is normalised is the sum as stored, for the backward too.
template <class S, class T>
void forward(const RmsNormForward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t width = args.x.size(1);
  const Rows<S> xs(args.x), sums(args.branch ? args.sum : args.x);
  const Rows<T> branches(args.branch), ys(args.y);
  const A* weight = args.weight.data<A>();
  const A* residual_weight = args.residual_weight.data<A>();
  A* rstds = args.rstd.data<A>();
  for (int64_t t = begin; t < end; ++t) {
    S *x = xs[t], *sum = sums[t];
    T* y = ys[t];
    A squares = 0;
    if (args.branch) {
      const T* branch = branches[t];
      squares = sum_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
        auto v = load(d, x + i);
        if (residual_weight) v = hn::Mul(load(d, residual_weight + i), v);
        v = hn::Add(v, load(d, branch + i));
        store(v, d, sum + i);
        v = load(d, sum + i);
        return hn::Mul(v, v);
      });
    } else {
      squares = sum_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = load(d, x + i);
        return hn::Mul(v, v);
      });
    }
    const A rstd =
        static_cast<A>(1 / std::sqrt(static_cast<double>(squares) / static_cast<double>(width) + args.eps));
    rstds[t] = rstd;
    for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto normal = hn::Mul(load(d, sum + i), hn::Set(d, rstd));
      store(hn::Mul(normal, load(d, weight + i)), d, y + i);
    });
  }
}

// With n = sum * rstd and g = dy * weight:  total = d_sum + rstd (g - n mean(g n)),  d_weight = sum over T of
// dy n. Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its row of the partial sums.
template <class S, class T>
void backward(const RmsNormBackward& args, const Tensor& weight_partials, const Tensor& residual_partials,
              int64_t begin, int64_t end) {
  const int64_t width = args.sum.size(1);
  using A = Arithmetic<T>;
  const Rows<S> d_sums(args.d_sum), sums(args.sum), xs(args.x), dxs(args.dx);
  const Rows<T> dys(args.dy), d_branches(args.d_branch);
  const Rows<A> weight_rows(weight_partials), residual_rows(residual_partials);
  const A* weight = args.weight.data<A>();
  const A* residual_weight = args.residual_weight.data<A>();
  const A* rstds = args.rstd.data<A>();
  const bool residual = !args.x.empty(), other_paths = !args.d_sum.empty();
  for (int64_t t = begin; t < end; ++t) {
    A* d_weight = weight_rows[t / kRowsPerPartial];
    A* d_residual = residual_partials ? residual_rows[t / kRowsPerPartial] : nullptr;
    if (t % kRowsPerPartial == 0) {
      std::fill_n(d_weight, width, A{0});
      if (d_residual) std::fill_n(d_residual, width, A{0});
    }
    const T* dy = dys[t];
    const S *sum = sums[t], *x = residual ? xs[t] : nullptr;
    const S* d_sum = other_paths ? d_sums[t] : nullptr;
    S* dx = dxs[t];
    T* d_branch = residual ? d_branches[t] : nullptr;
    const A rstd = rstds[t];
    const A product = sum_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto term = hn::Mul(load(d, dy + i), hn::Mul(load(d, sum + i), hn::Set(d, rstd)));
      store(hn::Add(load(d, d_weight + i), term), d, d_weight + i);
      return hn::Mul(term, load(d, weight + i));
    });
    const A mean = product / static_cast<A>(width);
    for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto scale = hn::Set(d, rstd);
      const auto normal = hn::Mul(load(d, sum + i), scale);
      const auto g = hn::Mul(load(d, dy + i), load(d, weight + i));
      auto total = hn::Mul(scale, hn::NegMulAdd(normal, hn::Set(d, mean), g));
      if (d_sum) total = hn::Add(total, load(d, d_sum + i));
      if (x) {
        store(total, d, d_branch + i);
        if (d_residual) {
          const auto d_w = hn::MulAdd(total, load(d, x + i), load(d, d_residual + i));
          store(d_w, d, d_residual + i);
        }
        if (residual_weight) total = hn::Mul(total, load(d, residual_weight + i));
      }
      store(total, d, dx + i);
    });
  }
}

void forward_rows(const RmsNormForward& args, int64_t begin, int64_t end) {
  with_types(args.x.dtype(), args.y.dtype(), [&](auto stream, auto branch) {
    forward<decltype(stream), decltype(branch)>(args, begin, end);
  });
}
void backward_rows(const RmsNormBackward& args, const Tensor& weight_partials,
                   const Tensor& residual_partials, int64_t begin, int64_t end) {
  with_types(args.sum.dtype(), args.dy.dtype(), [&](auto stream, auto branch) {
    backward<decltype(stream), decltype(branch)>(args, weight_partials, residual_partials, begin, end);
  });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const RmsNormForward& args) {
  const DType dtype = args.x.dtype(), branch = args.y.dtype(), sums = arithmetic_dtype(dtype);
  expect_stream(args.x, "RmsNormForward.x", branch);
  const Shape shape{args.x.size(0), args.x.size(1)}, channels{shape[1]};
  expect(args.x, "RmsNormForward.x", dtype, shape);
  expect_or_empty(args.branch, "RmsNormForward.branch", branch, shape);
  expect_or_empty(args.residual_weight, "RmsNormForward.residual_weight", sums, channels);
  if (args.branch) expect(args.sum, "RmsNormForward.sum", dtype, shape);
  expect(args.weight, "RmsNormForward.weight", sums, channels);
  expect(args.y, "RmsNormForward.y", branch, shape);
  expect(args.rstd, "RmsNormForward.rstd", sums, {shape[0]});
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const RmsNormBackward& args) {
  const DType dtype = args.sum.dtype(), branch = args.dy.dtype(), sums = arithmetic_dtype(dtype);
  expect_stream(args.sum, "RmsNormBackward.sum", branch);
  const Shape shape{args.dy.size(0), args.dy.size(1)}, channels{shape[1]};
  expect(args.dy, "RmsNormBackward.dy", branch, shape);
  expect_or_empty(args.d_sum, "RmsNormBackward.d_sum", dtype, shape);
  expect(args.sum, "RmsNormBackward.sum", dtype, shape);
  expect(args.rstd, "RmsNormBackward.rstd", sums, {shape[0]});
  expect(args.weight, "RmsNormBackward.weight", sums, channels);
  expect_or_empty(args.x, "RmsNormBackward.x", dtype, shape);
  expect_or_empty(args.residual_weight, "RmsNormBackward.residual_weight", sums, channels);
  expect(args.dx, "RmsNormBackward.dx", dtype, shape);
  if (args.x) expect(args.d_branch, "RmsNormBackward.d_branch", branch, shape);
  expect(args.d_weight, "RmsNormBackward.d_weight", sums, channels);
  expect_or_empty(args.d_residual_weight, "RmsNormBackward.d_residual_weight", sums, channels);
  const bool learned = args.x && args.d_residual_weight;
  const Shape partials{num_partials(shape[0]), shape[1]};
  Scratch scratch(stream, 2 * carved_bytes(sums, partials));
  Carver carver = scratch.carver();
  const Tensor weight_partials = carver.take(sums, partials);
  const Tensor residual_partials = learned ? carver.take(sums, partials) : Tensor();
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, weight_partials, residual_partials, begin, end);
  });
  add_partials(stream, weight_partials, args.d_weight);
  if (learned) add_partials(stream, residual_partials, args.d_residual_weight);
}

}  // namespace transxssm::cpu
#endif
