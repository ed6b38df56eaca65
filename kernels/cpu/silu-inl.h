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

// exp(x) to 3e-6 of itself, for x from -87 to 87: 2^(whole + rest) with the Taylor series of 2^rest. Added to
// `shift` a number loses its fraction, and its last bits are those of whole + 127: the exponent of 2^whole.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V rough_exp(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const V log2_e = hn::Set(d, 1.44269504f), shift = hn::Set(d, 12582912 + 127);
  const V shifted = hn::MulAdd(x, log2_e, shift);
  const V rest = hn::MulSub(x, log2_e, hn::Sub(shifted, shift));
  V sum = hn::MulAdd(rest, hn::Set(d, 0.00133335581f), hn::Set(d, 0.00961812911f));  // (log 2)^n / n!
  sum = hn::MulAdd(rest, sum, hn::Set(d, 0.0555041087f));
  sum = hn::MulAdd(rest, sum, hn::Set(d, 0.240226507f));
  sum = hn::MulAdd(rest, sum, hn::Set(d, 0.693147181f));
  sum = hn::MulAdd(rest, sum, hn::Set(d, 1));
  return hn::Mul(sum, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted))));
}

// 1 / (1 + exp(-x)) of values stored as T: what is rounded to bf16 needs no more than the rough exponential
// and a step of Newton's method from the CPU's estimate of the reciprocal. Exponents are bounded: below the
// bound's negative the sigmoid stays at a tiny value. A NaN gives a number: multiply by x, as silu does, to
// pass it on.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = hn::Set(d, 1);
  if constexpr (sizeof(T) == 2) {
    const V bound = hn::Set(d, 87);
    const V y = hn::Add(one, rough_exp(d, hn::Min(hn::Max(hn::Neg(x), hn::Neg(bound)), bound)));
    // Only that of a whole AVX-512 vector is so good that the sigmoid of a large number is one, as silu_slope
    // needs it.
    if constexpr (HWY_TARGET != HWY_AVX3 || hn::MaxLanes(D()) != 16) return hn::Div(one, y);
    const V estimate = hn::ApproximateReciprocal(y);
    return hn::MulAdd(estimate, hn::NegMulAdd(y, estimate, one), estimate);
  }
  const V bound = hn::Set(d, sizeof(T) == 4 ? 88 : 700);
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
