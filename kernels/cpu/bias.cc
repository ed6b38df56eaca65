#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/bias.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
void forward(const BiasForward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const Rows<T> ys(args.y);
  const A* bias = args.bias.data<A>();
  for (int64_t t = begin; t < end; ++t) {
    T* y = ys[t];
    for_lanes<A>(args.y.size(1), [&](auto d, int64_t i) HWY_ATTR {
      store(hn::Add(load(d, y + i), load(d, bias + i)), d, y + i);
    });
  }
}

// Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its row of the partial sums.
template <class T>
void backward(const BiasBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t width = args.dy.size(1);
  const Rows<T> dys(args.dy);
  const Rows<A> partial_rows(partials);
  for (int64_t t = begin; t < end; ++t) {
    A* sums = partial_rows[t / kRowsPerPartial];
    if (t % kRowsPerPartial == 0) std::fill_n(sums, width, A{0});
    const T* dy = dys[t];
    for_lanes<A>(width, [&](auto d, int64_t i)
                            HWY_ATTR { store(hn::Add(load(d, sums + i), load(d, dy + i)), d, sums + i); });
  }
}

void forward_rows(const BiasForward& args, int64_t begin, int64_t end) {
  with_type(args.y.dtype(), [&](auto type) { forward<decltype(type)>(args, begin, end); });
}
void backward_rows(const BiasBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  with_type(args.dy.dtype(), [&](auto type) { backward<decltype(type)>(args, partials, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const BiasForward& args) {
  expect_activation(args.y, "BiasForward.y");
  const DType dtype = args.y.dtype();
  const Shape shape{args.y.size(0), args.y.size(1)};
  expect(args.y, "BiasForward.y", dtype, shape);
  expect(args.bias, "BiasForward.bias", arithmetic_dtype(dtype), {shape[1]});
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const BiasBackward& args) {
  expect_activation(args.dy, "BiasBackward.dy");
  const DType dtype = args.dy.dtype(), sums = arithmetic_dtype(dtype);
  const Shape shape{args.dy.size(0), args.dy.size(1)};
  expect(args.dy, "BiasBackward.dy", dtype, shape);
  expect(args.d_bias, "BiasBackward.d_bias", sums, {shape[1]});
  const Shape partial_shape{num_partials(shape[0]), shape[1]};
  Scratch scratch(stream, carved_bytes(sums, partial_shape));
  const Tensor partials = scratch.carver().take(sums, partial_shape);
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, partials, begin, end);
  });
  add_partials(stream, partials, args.d_bias);
}

}  // namespace transxssm::cpu
#endif
