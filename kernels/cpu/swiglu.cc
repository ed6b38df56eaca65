#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/silu-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Gate and up are halves of one row each, and what the CPU fetches ahead by itself ends with the half. So the
// lines of the next row are asked for beside those in use.
template <class T>
class NextRow {
 public:
  NextRow(const Rows<T>& rows, int64_t row, int64_t end) : next_(rows[std::min(row + 1, end - 1)]) {}
  void fetch(int64_t i) const { __builtin_prefetch(next_ + i); }

 private:
  const T* next_;
};

template <class T>
void forward(const SwigluForward& args, int64_t begin, int64_t end) {
  const Rows<T> gates(args.gate), ups(args.up), ys(args.y);
  for (int64_t t = begin; t < end; ++t) {
    const T* gate = gates[t];
    const T* up = ups[t];
    T* y = ys[t];
    const NextRow<T> next_gate(gates, t, end), next_up(ups, t, end);
    for_lanes<Arithmetic<T>>(args.gate.size(1), [&](auto d, int64_t i) HWY_ATTR {
      next_gate.fetch(i), next_up.fetch(i);
      const auto g = load(d, gate + i);
      store(hn::Mul(hn::Mul(g, sigmoid<T>(d, g)), load(d, up + i)), d, y + i);
    });
  }
}

template <class T>
void backward(const SwigluBackward& args, int64_t begin, int64_t end) {
  const Rows<T> gates(args.gate), ups(args.up), dys(args.dy), d_gates(args.d_gate), d_ups(args.d_up),
      ys(args.y);
  const bool recompute = !args.y.empty();
  for (int64_t t = begin; t < end; ++t) {
    const T *gate = gates[t], *up = ups[t], *dy = dys[t];
    T *d_gate = d_gates[t], *d_up = d_ups[t], *y = recompute ? ys[t] : nullptr;
    const NextRow<T> next_gate(gates, t, end), next_up(ups, t, end), next_dy(dys, t, end);
    const NextRow<T> next_d_gate(d_gates, t, end), next_d_up(d_ups, t, end);
    for_lanes<Arithmetic<T>>(args.gate.size(1), [&](auto d, int64_t i) HWY_ATTR {
      next_gate.fetch(i), next_up.fetch(i), next_dy.fetch(i), next_d_gate.fetch(i), next_d_up.fetch(i);
      const auto g = load(d, gate + i), u = load(d, up + i), grad = load(d, dy + i);
      const auto s = sigmoid<T>(d, g), silu = hn::Mul(g, s);
      store(hn::Mul(hn::Mul(grad, u), silu_slope(d, g, s)), d, d_gate + i);
      store(hn::Mul(grad, silu), d, d_up + i);
      if (recompute) store(hn::Mul(silu, u), d, y + i);
    });
  }
}

void forward_rows(const SwigluForward& args, int64_t begin, int64_t end) {
  with_type(args.gate.dtype(), [&](auto type) { forward<decltype(type)>(args, begin, end); });
}
void backward_rows(const SwigluBackward& args, int64_t begin, int64_t end) {
  with_type(args.gate.dtype(), [&](auto type) { backward<decltype(type)>(args, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

void run(Stream& stream, const SwigluForward& args) {
  expect_activation(args.gate, "SwigluForward.gate");
  const DType dtype = args.gate.dtype();
  const Shape shape{args.gate.size(0), args.gate.size(1)};
  expect(args.gate, "SwigluForward.gate", dtype, shape);
  expect(args.up, "SwigluForward.up", dtype, shape);
  expect(args.y, "SwigluForward.y", dtype, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(args, begin, end);
  });
}

void run(Stream& stream, const SwigluBackward& args) {
  expect_activation(args.gate, "SwigluBackward.gate");
  const DType dtype = args.gate.dtype();
  const Shape shape{args.gate.size(0), args.gate.size(1)};
  expect(args.gate, "SwigluBackward.gate", dtype, shape);
  expect(args.up, "SwigluBackward.up", dtype, shape);
  expect(args.dy, "SwigluBackward.dy", dtype, shape);
  expect(args.d_gate, "SwigluBackward.d_gate", dtype, shape);
  expect(args.d_up, "SwigluBackward.d_up", dtype, shape);
  expect_or_empty(args.y, "SwigluBackward.y", dtype, shape);
  parallel_ranges(stream, shape[0], row_grain(shape[1]), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
