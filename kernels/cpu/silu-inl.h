// The sigmoid inside SiLU, shared by the operations' SIMD code. Compiled once an instruction set: hence the
// guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SILU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#endif

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 1 / (1 + exp(-x)). hn::Exp is right up to some bound only: below its negative the sigmoid stays at a tiny
// value. A NaN gives a number: multiply by x, as silu does, to pass it on.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = hn::Set(d, 1), bound = hn::Set(d, sizeof(hn::TFromD<D>) == 4 ? 88 : 700);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(x), bound))));
}

// silu'(x) = s (1 + x (1 - s)), s the sigmoid of x.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu_slope(D d, V x, V s) {
  const V one = hn::Set(d, 1);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
