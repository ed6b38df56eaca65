#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
void rotate(const Rotary& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t heads = args.x.size(1), half = args.x.size(2) / 2;
  const Rows<A> cosines(args.cos), sines(args.sin);
  const int32_t* positions = args.position.data<int32_t>();
  const A* scales = args.scale.data<A>();
  const A sign = args.direction == RotaryDirection::forward ? 1 : -1;
  for (int64_t t = begin; t < end; ++t) {
    const A *cos = cosines[positions[t]], *sin = sines[positions[t]];
    const A scale = scales ? scales[t] : A{1};
    for (int64_t head = 0; head < heads; ++head) {
      T* x = args.x.data<T>() + t * args.x.stride(0) + head * args.x.stride(1);
      for_lanes<A>(half, [&](auto d, int64_t i) HWY_ATTR {
        const auto first = load(d, x + i), second = load(d, x + half + i);
        const auto c = hn::Mul(load(d, cos + i), hn::Set(d, scale));
        const auto s = hn::Mul(load(d, sin + i), hn::Set(d, sign * scale));
        store(hn::NegMulAdd(second, s, hn::Mul(first, c)), d, x + i);
        store(hn::MulAdd(first, s, hn::Mul(second, c)), d, x + half + i);
      });
    }
  }
}

void rotate_tokens(const Rotary& args, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { rotate<decltype(type)>(args, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(rotate_tokens);

void run(Stream& stream, const Rotary& args) {
  expect_activation(args.x, "Rotary.x");
  const DType dtype = args.x.dtype(), table = arithmetic_dtype(dtype);
  const int64_t tokens = args.x.size(0), heads = args.x.size(1), width = args.x.size(2);
  expect(args.x, "Rotary.x", dtype, {tokens, heads, width});
  TRANSXSSM_CHECK(width % 2 == 0, "Rotary.x has odd width {}", width);
  expect(args.cos, "Rotary.cos", table, {args.cos.size(0), width / 2});
  expect(args.sin, "Rotary.sin", table, {args.cos.size(0), width / 2});
  expect(args.position, "Rotary.position", DType::i32, {tokens});
  expect_or_empty(args.scale, "Rotary.scale", table, {tokens});
  const int32_t* positions = args.position.data<int32_t>();
  for (int64_t t = 0; t < tokens; ++t)
    TRANSXSSM_CHECK(positions[t] >= 0 && positions[t] < args.cos.size(0), "position {} of a table of {}",
                    positions[t], args.cos.size(0));
  parallel_ranges(stream, tokens, row_grain(heads * width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rotate_tokens)(args, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
