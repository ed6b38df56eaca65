// The sigmoid inside SiLU, shared by the operations' SIMD code. Compiled once an instruction set: hence the
// guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SILU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SILU_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 1 / (1 + exp(-x)) of values stored as T. Exponents are bounded: below the bound's negative the sigmoid
// stays at a tiny value, which a reciprocal can have. A NaN gives a NaN.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = hn::Set(d, 1), bound = hn::Set(d, sizeof(T) == 8 ? 700 : 87);
  const V y = hn::Add(one, exp<T>(d, hn::Min(bound, hn::Neg(x))));
  if constexpr (sizeof(T) == 2) {
    return reciprocal(d, y);
  } else {
    return hn::Div(one, y);
  }
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
