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

template <class T>
void forward(const RmsNormForward& args, int64_t begin, int64_t end) {
  const int64_t width = args.x.size(1);
  const Rows<T> xs(args.x), branches(args.branch), sums(args.branch ? args.sum : args.x), ys(args.y);
  const T* weight = args.weight.data<T>();
  const T* residual_weight = args.residual_weight.data<T>();
  T* rstds = args.rstd.data<T>();
  for (int64_t t = begin; t < end; ++t) {
    T *x = xs[t], *sum = sums[t], *y = ys[t];
    T squares = 0;
    if (args.branch) {
      const T* branch = branches[t];
      squares = sum_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
        auto v = hn::LoadU(d, x + i);
        if (residual_weight) v = hn::Mul(hn::LoadU(d, residual_weight + i), v);
        v = hn::Add(v, hn::LoadU(d, branch + i));
        hn::StoreU(v, d, sum + i);
        return hn::Mul(v, v);
      });
    } else {
      squares = sum_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = hn::LoadU(d, x + i);
        return hn::Mul(v, v);
      });
    }
    const T rstd =
        static_cast<T>(1 / std::sqrt(static_cast<double>(squares) / static_cast<double>(width) + args.eps));
    rstds[t] = rstd;
    for_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto normal = hn::Mul(hn::LoadU(d, sum + i), hn::Set(d, rstd));
      hn::StoreU(hn::Mul(normal, hn::LoadU(d, weight + i)), d, y + i);
    });
  }
}

// With n = sum * rstd and g = dy * weight:  total = d_sum + rstd (g - n mean(g n)),  d_weight = sum over T of
// dy n. Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its row of the partial sums.
template <class T>
void backward(const RmsNormBackward& args, const Tensor& weight_partials, const Tensor& residual_partials,
              int64_t begin, int64_t end) {
  const int64_t width = args.sum.size(1);
  const Rows<T> dys(args.dy), d_sums(args.d_sum), sums(args.sum), xs(args.x), dxs(args.dx),
      d_branches(args.d_branch);
  const Rows<T> weight_rows(weight_partials), residual_rows(residual_partials);
  const T* weight = args.weight.data<T>();
  const T* residual_weight = args.residual_weight.data<T>();
  const T* rstds = args.rstd.data<T>();
  const bool residual = !args.x.empty(), other_paths = !args.d_sum.empty();
  for (int64_t t = begin; t < end; ++t) {
    T* d_weight = weight_rows[t / kRowsPerPartial];
    T* d_residual = residual_partials ? residual_rows[t / kRowsPerPartial] : nullptr;
    if (t % kRowsPerPartial == 0) {
      std::fill_n(d_weight, width, T{0});
      if (d_residual) std::fill_n(d_residual, width, T{0});
    }
    const T *dy = dys[t], *sum = sums[t], *x = residual ? xs[t] : nullptr;
    const T* d_sum = other_paths ? d_sums[t] : nullptr;
    T *dx = dxs[t], *d_branch = residual ? d_branches[t] : nullptr;
    const T rstd = rstds[t];
    const T product = sum_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto term = hn::Mul(hn::LoadU(d, dy + i), hn::Mul(hn::LoadU(d, sum + i), hn::Set(d, rstd)));
      hn::StoreU(hn::Add(hn::LoadU(d, d_weight + i), term), d, d_weight + i);
      return hn::Mul(term, hn::LoadU(d, weight + i));
    });
    const T mean = product / static_cast<T>(width);
    for_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto scale = hn::Set(d, rstd);
      const auto normal = hn::Mul(hn::LoadU(d, sum + i), scale);
      const auto g = hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, weight + i));
      auto total = hn::Mul(scale, hn::NegMulAdd(normal, hn::Set(d, mean), g));
      if (d_sum) total = hn::Add(total, hn::LoadU(d, d_sum + i));
      if (x) {
        hn::StoreU(total, d, d_branch + i);
        if (d_residual) {
          const auto d_w = hn::MulAdd(total, hn::LoadU(d, x + i), hn::LoadU(d, d_residual + i));
          hn::StoreU(d_w, d, d_residual + i);
        }
        if (residual_weight) total = hn::Mul(total, hn::LoadU(d, residual_weight + i));
      }
      hn::StoreU(total, d, dx + i);
    });
  }
}

void forward_rows(const RmsNormForward& args, int64_t begin, int64_t end) {
  args.x.dtype() == DType::f32 ? forward<float>(args, begin, end) : forward<double>(args, begin, end);
}
void backward_rows(const RmsNormBackward& args, const Tensor& weight_partials,
                   const Tensor& residual_partials, int64_t begin, int64_t end) {
  args.dy.dtype() == DType::f32 ? backward<float>(args, weight_partials, residual_partials, begin, end)
                                : backward<double>(args, weight_partials, residual_partials, begin, end);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const RmsNormForward& args) {
  expect_float(args.x, "RmsNormForward.x");
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.size(0), args.x.size(1)}, channels{shape[1]};
  expect(args.x, "RmsNormForward.x", dtype, shape);
  expect_or_empty(args.branch, "RmsNormForward.branch", dtype, shape);
  expect_or_empty(args.residual_weight, "RmsNormForward.residual_weight", dtype, channels);
  if (args.branch) expect(args.sum, "RmsNormForward.sum", dtype, shape);
  expect(args.weight, "RmsNormForward.weight", dtype, channels);
  expect(args.y, "RmsNormForward.y", dtype, shape);
  expect(args.rstd, "RmsNormForward.rstd", dtype, {shape[0]});
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const RmsNormBackward& args) {
  expect_float(args.dy, "RmsNormBackward.dy");
  const DType dtype = args.dy.dtype();
  const Shape shape{args.dy.size(0), args.dy.size(1)}, channels{shape[1]};
  expect(args.dy, "RmsNormBackward.dy", dtype, shape);
  expect_or_empty(args.d_sum, "RmsNormBackward.d_sum", dtype, shape);
  expect(args.sum, "RmsNormBackward.sum", dtype, shape);
  expect(args.rstd, "RmsNormBackward.rstd", dtype, {shape[0]});
  expect(args.weight, "RmsNormBackward.weight", dtype, channels);
  expect_or_empty(args.x, "RmsNormBackward.x", dtype, shape);
  expect_or_empty(args.residual_weight, "RmsNormBackward.residual_weight", dtype, channels);
  expect(args.dx, "RmsNormBackward.dx", dtype, shape);
  if (args.x) expect(args.d_branch, "RmsNormBackward.d_branch", dtype, shape);
  expect(args.d_weight, "RmsNormBackward.d_weight", dtype, channels);
  expect_or_empty(args.d_residual_weight, "RmsNormBackward.d_residual_weight", dtype, channels);
  const bool learned = args.x && args.d_residual_weight;
  const Shape partials{num_partials(shape[0]), shape[1]};
  Scratch scratch(stream, 2 * (partials.num_elements() * dtype_bytes(dtype) + kAlignment));
  Carver carver = scratch.carver();
  const Tensor weight_partials = carver.take(dtype, partials);
  const Tensor residual_partials = learned ? carver.take(dtype, partials) : Tensor();
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, weight_partials, residual_partials, begin, end);
  });
  add_partials(stream, weight_partials, args.d_weight);
  if (learned) add_partials(stream, residual_partials, args.d_residual_weight);
}

}  // namespace transxssm::cpu
#endif
