#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_norm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/silu-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// v = x silu(z)
template <class D, class T>
HWY_INLINE hn::Vec<D> gated(D d, const T* x, const T* z) {
  const auto gate = load(d, z);
  return hn::Mul(load(d, x), hn::Mul(gate, sigmoid<T>(d, gate)));
}

inline double inverse_rms(double squares, int64_t group_width, double eps) {
  return 1 / std::sqrt(squares / static_cast<double>(group_width) + eps);
}

template <class T>
void squares(const GatedNormSquares& args, int64_t begin, int64_t end) {
  const int64_t groups = args.squares.size(1), width = args.x.size(1) / groups;
  const Rows<T> xs(args.x), zs(args.z);
  const Rows<Arithmetic<T>> sums(args.squares);
  for (int64_t t = begin; t < end; ++t)
    for (int64_t group = 0; group < groups; ++group) {
      const T *x = xs[t] + group * width, *z = zs[t] + group * width;
      sums[t][group] = sum_lanes<Arithmetic<T>>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = gated(d, x + i, z + i);
        return hn::Mul(v, v);
      });
    }
}

template <class T>
void forward(const GatedNormForward& args, int64_t begin, int64_t end) {
  const int64_t groups = args.squares.size(1), width = args.x.size(1) / groups;
  using A = Arithmetic<T>;
  const Rows<T> xs(args.x), zs(args.z), ys(args.y);
  const Rows<A> sums(args.squares);
  for (int64_t t = begin; t < end; ++t)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * width;
      const T *x = xs[t] + first, *z = zs[t] + first;
      const A* weight = args.weight.data<A>() + first;
      T* y = ys[t] + first;
      const A rstd = static_cast<A>(inverse_rms(sums[t][group], args.group_width, args.eps));
      for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto normal = hn::Mul(gated(d, x + i, z + i), hn::Set(d, rstd));
        store(hn::Mul(normal, load(d, weight + i)), d, y + i);
      });
    }
}

template <class T>
void dots(const GatedNormDots& args, int64_t begin, int64_t end) {
  const int64_t groups = args.dots.size(1), width = args.x.size(1) / groups;
  using A = Arithmetic<T>;
  const Rows<T> xs(args.x), zs(args.z), dys(args.dy);
  const Rows<A> sums(args.dots);
  for (int64_t t = begin; t < end; ++t)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * width;
      const T *x = xs[t] + first, *z = zs[t] + first, *dy = dys[t] + first;
      const A* weight = args.weight.data<A>() + first;
      sums[t][group] = sum_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto g = hn::Mul(load(d, dy + i), load(d, weight + i));
        return hn::Mul(g, gated(d, x + i, z + i));
      });
    }
}

// With g = dy * weight:  dv = rstd (g - v rstd^2 mean(g v)),  dx = dv silu(z),  dz = dv x silu'(z),
// d_weight = sum over T of dy v rstd. Rows [begin, end) are whole blocks of kRowsPerPartial; each writes its
// row of the partial sums.
template <class T>
void backward(const GatedNormBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  const int64_t groups = args.squares.size(1), width = args.x.size(1) / groups;
  using A = Arithmetic<T>;
  const Rows<T> xs(args.x), zs(args.z), dys(args.dy), dxs(args.dx), dzs(args.dz);
  const Rows<A> sums(args.squares), products(args.dots), partial_rows(partials);
  for (int64_t t = begin; t < end; ++t) {
    A* const d_weights = partial_rows[t / kRowsPerPartial];
    if (t % kRowsPerPartial == 0) std::fill_n(d_weights, args.x.size(1), A{0});
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * width;
      const T *x = xs[t] + first, *z = zs[t] + first, *dy = dys[t] + first;
      const A* weight = args.weight.data<A>() + first;
      T *dx = dxs[t] + first, *dz = dzs[t] + first;
      A* d_weight = d_weights + first;
      const double inverse = inverse_rms(sums[t][group], args.group_width, args.eps);
      const A rstd = static_cast<A>(inverse);
      const A slope = static_cast<A>(inverse * inverse * static_cast<double>(products[t][group]) /
                                     static_cast<double>(args.group_width));
      for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR {
        const auto scale = hn::Set(d, rstd), grad = load(d, dy + i);
        const auto value = load(d, x + i), gate = load(d, z + i);
        const auto s = sigmoid<T>(d, gate), silu = hn::Mul(gate, s), v = hn::Mul(value, silu);
        const auto term = hn::Mul(grad, hn::Mul(v, scale));
        store(hn::Add(load(d, d_weight + i), term), d, d_weight + i);
        const auto g = hn::Mul(grad, load(d, weight + i));
        const auto dv = hn::Mul(scale, hn::NegMulAdd(v, hn::Set(d, slope), g));
        store(hn::Mul(dv, silu), d, dx + i);
        store(hn::Mul(hn::Mul(dv, value), silu_slope(d, gate, s)), d, dz + i);
      });
    }
  }
}

void squares_rows(const GatedNormSquares& args, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { squares<decltype(type)>(args, begin, end); });
}
void forward_rows(const GatedNormForward& args, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { forward<decltype(type)>(args, begin, end); });
}
void dots_rows(const GatedNormDots& args, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { dots<decltype(type)>(args, begin, end); });
}
void backward_rows(const GatedNormBackward& args, const Tensor& partials, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { backward<decltype(type)>(args, partials, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(squares_rows);
HWY_EXPORT(forward_rows);
HWY_EXPORT(dots_rows);
HWY_EXPORT(backward_rows);

namespace {

// An internal error unless `sums` is [T,groups] and the groups divide the channels of `shape` [T,W]; where
// `group_width` is given, a whole group has at least the channels of its part here.
void check_groups(const Tensor& sums, const char* name, DType dtype, const Shape& shape,
                  int64_t group_width = -1) {
  TRANSXSSM_CHECK(sums.rank() == 2, "{} is {}", name, sums.shape().to_string());
  const int64_t groups = sums.size(1);
  expect(sums, name, dtype, {shape[0], groups});
  TRANSXSSM_CHECK(groups > 0 && shape[1] % groups == 0, "{}: {} groups do not divide {} channels", name,
                  groups, shape[1]);
  TRANSXSSM_CHECK(group_width == -1 || group_width >= shape[1] / groups,
                  "{}: a whole group of {} channels has {} of them here", name, group_width,
                  shape[1] / groups);
}

}  // namespace

void run(Stream& stream, const GatedNormSquares& args) {
  expect_activation(args.x, "GatedNormSquares.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormSquares.x", dtype, shape);
  expect(args.z, "GatedNormSquares.z", dtype, shape);
  check_groups(args.squares, "GatedNormSquares.squares", sums, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(squares_rows)(args, begin, end);
  });
}

void run(Stream& stream, const GatedNormForward& args) {
  expect_activation(args.x, "GatedNormForward.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormForward.x", dtype, shape);
  expect(args.z, "GatedNormForward.z", dtype, shape);
  expect(args.weight, "GatedNormForward.weight", sums, {shape[1]});
  check_groups(args.squares, "GatedNormForward.squares", sums, shape, args.group_width);
  expect(args.y, "GatedNormForward.y", dtype, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const GatedNormDots& args) {
  expect_activation(args.x, "GatedNormDots.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormDots.x", dtype, shape);
  expect(args.z, "GatedNormDots.z", dtype, shape);
  expect(args.weight, "GatedNormDots.weight", sums, {shape[1]});
  expect(args.dy, "GatedNormDots.dy", dtype, shape);
  check_groups(args.dots, "GatedNormDots.dots", sums, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(dots_rows)(args, begin, end);
  });
}

void run(Stream& stream, const GatedNormBackward& args) {
  expect_activation(args.x, "GatedNormBackward.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormBackward.x", dtype, shape);
  expect(args.z, "GatedNormBackward.z", dtype, shape);
  expect(args.weight, "GatedNormBackward.weight", sums, {shape[1]});
  check_groups(args.squares, "GatedNormBackward.squares", sums, shape, args.group_width);
  expect(args.dots, "GatedNormBackward.dots", sums, args.squares.shape());
  expect(args.dy, "GatedNormBackward.dy", dtype, shape);
  expect(args.dx, "GatedNormBackward.dx", dtype, shape);
  expect(args.dz, "GatedNormBackward.dz", dtype, shape);
  expect(args.d_weight, "GatedNormBackward.d_weight", sums, {shape[1]});
  const Shape shape_of_partials{num_partials(shape[0]), shape[1]};
  Scratch scratch(stream, carved_bytes(sums, shape_of_partials));
  const Tensor partials = scratch.carver().take(sums, shape_of_partials);
  parallel_ranges(stream, shape[0], kRowsPerPartial, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, partials, begin, end);
  });
  add_partials(stream, partials, args.d_weight);
}

}  // namespace transxssm::cpu
#endif
