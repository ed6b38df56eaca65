// The exponential of the operations' SIMD code. Compiled once an instruction set: hence the guard that
// toggles.
#if defined(TRANSXSSM_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_EXP_INL_H_
#undef TRANSXSSM_KERNELS_CPU_EXP_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_EXP_INL_H_
#endif

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/avx512-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// exp(x) to 1e-7 (2 + |x|) of itself: 2^(x log2 e). The polynomials here are minimax approximations of 2^r
// on [0, 1), relative to 2^r, that are exact at 0 (found by Remez's algorithm).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V rough_exp(D d, V x) {
  return power_of_two(d, hn::Mul(x, hn::Set(d, 1.44269504f)), [d](V r) HWY_ATTR {
    V sum = hn::MulAdd(r, hn::Set(d, 0.001867130781f), hn::Set(d, 0.009017028539f));
    sum = hn::MulAdd(r, sum, hn::Set(d, 0.05579991467f));
    sum = hn::MulAdd(r, sum, hn::Set(d, 0.2401644496f));
    sum = hn::MulAdd(r, sum, hn::Set(d, 0.6931513119f));
    return hn::MulAdd(r, sum, hn::Set(d, 1));
  });
}

// exp(x) of values stored as T; of a NaN it is one.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  if constexpr (sizeof(T) == 2) {
    return rough_exp(d, x);
  } else if constexpr (sizeof(T) == 4) {
    const V finite = bounded(d, x, -105, 89);  // zero and infinity; far beyond, Highway's is neither
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, finite));
  } else {
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));  // Highway's of a NaN is zero
  }
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
