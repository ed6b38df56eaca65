#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/residual.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
void forward(const ResidualForward& args, int64_t begin, int64_t end) {
  const Rows<T> xs(args.x), branches(args.branch), ys(args.y);
  const T* weight = args.weight.data<T>();
  for (int64_t t = begin; t < end; ++t) {
    const T *x = xs[t], *branch = branches[t];
    T* y = ys[t];
    for_lanes<T>(args.x.size(1), [&](auto d, int64_t i) HWY_ATTR {
      auto v = hn::LoadU(d, x + i);
      if (weight) v = hn::Mul(hn::LoadU(d, weight + i), v);
      hn::StoreU(hn::Add(v, hn::LoadU(d, branch + i)), d, y + i);
    });
  }
}

// Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its row of the partial sums.
template <class T>
void backward(const ResidualBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  const int64_t width = args.dy.size(1);
  const Rows<T> dys(args.dy), xs(args.x), dxs(args.dx), partial_rows(partials);
  const T* weight = args.weight.data<T>();
  for (int64_t t = begin; t < end; ++t) {
    T* d_weight = partials ? partial_rows[t / kRowsPerPartial] : nullptr;
    if (d_weight && t % kRowsPerPartial == 0) std::fill_n(d_weight, width, T{0});
    const T *dy = dys[t], *x = d_weight ? xs[t] : nullptr;
    T* dx = dxs[t];
    for_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
      auto g = hn::LoadU(d, dy + i);
      if (d_weight) {
        hn::StoreU(hn::MulAdd(g, hn::LoadU(d, x + i), hn::LoadU(d, d_weight + i)), d, d_weight + i);
      }
      if (weight) g = hn::Mul(hn::LoadU(d, weight + i), g);
      hn::StoreU(g, d, dx + i);
    });
  }
}

void forward_rows(const ResidualForward& args, int64_t begin, int64_t end) {
  args.x.dtype() == DType::f32 ? forward<float>(args, begin, end) : forward<double>(args, begin, end);
}
void backward_rows(const ResidualBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  args.dy.dtype() == DType::f32 ? backward<float>(args, partials, begin, end)
                                : backward<double>(args, partials, begin, end);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const ResidualForward& args) {
  expect_float(args.x, "ResidualForward.x");
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "ResidualForward.x", dtype, shape);
  expect(args.branch, "ResidualForward.branch", dtype, shape);
  expect_or_empty(args.weight, "ResidualForward.weight", dtype, {shape[1]});
  expect(args.y, "ResidualForward.y", dtype, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const ResidualBackward& args) {
  expect_float(args.dy, "ResidualBackward.dy");
  const DType dtype = args.dy.dtype();
  const Shape shape{args.dy.size(0), args.dy.size(1)}, channels{shape[1]};
  expect(args.dy, "ResidualBackward.dy", dtype, shape);
  expect_or_empty(args.weight, "ResidualBackward.weight", dtype, channels);
  expect(args.dx, "ResidualBackward.dx", dtype, shape);
  expect_or_empty(args.d_weight, "ResidualBackward.d_weight", dtype, channels);
  if (args.d_weight) expect(args.x, "ResidualBackward.x", dtype, shape);
  const Shape partial_shape{num_partials(shape[0]), shape[1]};
  const int64_t bytes = partial_shape.num_elements() * dtype_bytes(dtype) + kAlignment;
  Scratch scratch(stream, args.d_weight ? bytes : 0);
  const Tensor partials = args.d_weight ? scratch.carver().take(dtype, partial_shape) : Tensor();
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, partials, begin, end);
  });
  if (partials) add_partials(stream, partials, args.d_weight);
}

}  // namespace transxssm::cpu
#endif
