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

// S: the residual stream, T: the branch.
template <class S, class T>
void forward(const ResidualForward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const Rows<S> xs(args.x), ys(args.y);
  const Rows<T> branches(args.branch);
  const A* weight = args.weight.data<A>();
  for (int64_t t = begin; t < end; ++t) {
    const S* x = xs[t];
    const T* branch = branches[t];
    S* y = ys[t];
    for_lanes<A>(args.x.size(1), [&](auto d, int64_t i) HWY_ATTR {
      auto v = load(d, x + i);
      if (weight) v = hn::Mul(load(d, weight + i), v);
      store(hn::Add(v, load(d, branch + i)), d, y + i);
    });
  }
}

// Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its row of the partial sums.
template <class S, class T>
void backward(const ResidualBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t width = args.dy.size(1);
  const Rows<S> dys(args.dy), xs(args.x), dxs(args.dx);
  const Rows<T> d_branches(args.d_branch);
  const Rows<A> partial_rows(partials);
  const A* weight = args.weight.data<A>();
  for (int64_t t = begin; t < end; ++t) {
    A* d_weight = partials ? partial_rows[t / kRowsPerPartial] : nullptr;
    if (d_weight && t % kRowsPerPartial == 0) std::fill_n(d_weight, width, A{0});
    const S *dy = dys[t], *x = d_weight ? xs[t] : nullptr;
    S* dx = dxs[t];
    T* d_branch = args.d_branch ? d_branches[t] : nullptr;
    for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
      auto g = load(d, dy + i);
      if (d_branch) store(g, d, d_branch + i);
      if (d_weight) {
        store(hn::MulAdd(g, load(d, x + i), load(d, d_weight + i)), d, d_weight + i);
      }
      if (weight) g = hn::Mul(load(d, weight + i), g);
      store(g, d, dx + i);
    });
  }
}

void forward_rows(const ResidualForward& args, int64_t begin, int64_t end) {
  with_types(args.x.dtype(), args.branch.dtype(), [&](auto stream, auto branch) {
    forward<decltype(stream), decltype(branch)>(args, begin, end);
  });
}
void backward_rows(const ResidualBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  with_types(args.dy.dtype(), args.d_branch ? args.d_branch.dtype() : args.dy.dtype(),
             [&](auto stream, auto branch) {
               backward<decltype(stream), decltype(branch)>(args, partials, begin, end);
             });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const ResidualForward& args) {
  const DType dtype = args.x.dtype(), branch = args.branch.dtype();
  expect_stream(args.x, "ResidualForward.x", branch);
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "ResidualForward.x", dtype, shape);
  expect(args.branch, "ResidualForward.branch", branch, shape);
  expect_or_empty(args.weight, "ResidualForward.weight", arithmetic_dtype(dtype), {shape[1]});
  expect(args.y, "ResidualForward.y", dtype, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const ResidualBackward& args) {
  const DType dtype = args.dy.dtype(), branch = args.d_branch ? args.d_branch.dtype() : dtype;
  expect_stream(args.dy, "ResidualBackward.dy", branch);
  const DType sums = arithmetic_dtype(dtype);
  const Shape shape{args.dy.size(0), args.dy.size(1)}, channels{shape[1]};
  expect(args.dy, "ResidualBackward.dy", dtype, shape);
  expect_or_empty(args.weight, "ResidualBackward.weight", sums, channels);
  expect(args.dx, "ResidualBackward.dx", dtype, shape);
  expect_or_empty(args.d_weight, "ResidualBackward.d_weight", sums, channels);
  expect_or_empty(args.d_branch, "ResidualBackward.d_branch", branch, shape);
  if (args.d_weight) expect(args.x, "ResidualBackward.x", dtype, shape);
  const Shape partial_shape{num_partials(shape[0]), shape[1]};
  Scratch scratch(stream, args.d_weight ? carved_bytes(sums, partial_shape) : 0);
  const Tensor partials = args.d_weight ? scratch.carver().take(sums, partial_shape) : Tensor();
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, partials, begin, end);
  });
  if (partials) add_partials(stream, partials, args.d_weight);
}

}  // namespace transxssm::cpu
#endif
