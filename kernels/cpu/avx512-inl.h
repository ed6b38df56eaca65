// What AVX-512 has single instructions for and Highway does not use, for vectors of f32 of any length; the
// only intrinsics beside block products. Compiled once an instruction set: hence the guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_AVX512_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_AVX512_INL_H_
#undef TRANSXSSM_KERNELS_CPU_AVX512_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_AVX512_INL_H_
#endif

#include <hwy/highway.h>

#include "runtime/cpu_features.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// x, or the nearest number of [low, high]; a NaN stays one, as Min and Max do not promise.
template <class D, class V>
HWY_INLINE V bounded(D d, V x, float low, float high) {
  const V least = hn::Set(d, low), most = hn::Set(d, high);
  x = hn::IfThenElse(hn::Lt(x, least), least, x);
  return hn::IfThenElse(hn::Gt(x, most), most, x);
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3

namespace raw {

constexpr int kFloor = 0x09;      // rounds down, raises nothing
constexpr int kSubnormal = 0x20;  // a class of numbers

HWY_INLINE __m512 fraction(__m512 x) {
  return _mm512_reduce_ps(x, kFloor);
}
HWY_INLINE __m256 fraction(__m256 x) {
  return _mm256_reduce_ps(x, kFloor);
}
HWY_INLINE __m128 fraction(__m128 x) {
  return _mm_reduce_ps(x, kFloor);
}
HWY_INLINE __m512 scale(__m512 x, __m512 exponent) {
  return _mm512_scalef_ps(x, exponent);
}
HWY_INLINE __m256 scale(__m256 x, __m256 exponent) {
  return _mm256_scalef_ps(x, exponent);
}
HWY_INLINE __m128 scale(__m128 x, __m128 exponent) {
  return _mm_scalef_ps(x, exponent);
}
HWY_INLINE __m512 estimate_of_reciprocal(__m512 x) {
  return _mm512_rcp14_ps(x);
}
HWY_INLINE __m256 estimate_of_reciprocal(__m256 x) {
  return _mm256_rcp14_ps(x);
}
HWY_INLINE __m128 estimate_of_reciprocal(__m128 x) {
  return _mm_rcp14_ps(x);
}

}  // namespace raw

// polynomial(fraction of x) 2^(whole part of x): 2^x, given 2^x on [0, 1). Infinities and NaNs as of 2^x.
template <class D, class V, class Polynomial>
HWY_INLINE V power_of_two(D, V x, Polynomial&& polynomial) {
  return V{raw::scale(polynomial(V{raw::fraction(x.raw)}).raw, x.raw)};
}

// 1 / x to one unit in the last place, for x from 2^-126 to 2^126: the estimate, and a step of Newton's
// method.
template <class D, class V>
HWY_INLINE V reciprocal(D d, V x) {
  const V estimate{raw::estimate_of_reciprocal(x.raw)};
  return hn::MulAdd(estimate, hn::NegMulAdd(x, estimate, hn::Set(d, 1)), estimate);
}

// Rounds `v` to bf16: round_at_once where the CPU has the instruction and no element is subnormal, as those
// it takes for zero; round_operand on a CPU known to have it. The assembler knows it, though this code is
// compiled for CPUs without it too.
inline const bool kCpuRounds = cpu_has_bf16();
HWY_INLINE void round_operand(hn::Vec512<float> v, uint16_t* to) {
  __m256i rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(v.raw));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
}
HWY_INLINE bool round_at_once(hn::Vec512<float> v, uint16_t* to) {
  if (!kCpuRounds || _mm512_fpclass_ps_mask(v.raw, raw::kSubnormal) != 0) return false;
  round_operand(v, to);
  return true;
}

#else

// x 2^exponent, a whole number of 128 at most: of that the power is infinity, below -126 zero.
template <class D, class V>
HWY_INLINE V scale(D d, V x, V exponent) {
  const hn::RebindToSigned<D> di;
  const auto biased = hn::Max(hn::Add(hn::ConvertTo(di, exponent), hn::Set(di, 127)), hn::Zero(di));
  return hn::Mul(x, hn::BitCast(d, hn::ShiftLeft<23>(biased)));
}

template <class D, class V, class Polynomial>
HWY_INLINE V power_of_two(D d, V x, Polynomial&& polynomial) {
  const V finite = bounded(d, x, -127, 128), whole = hn::Floor(finite);
  return scale(d, polynomial(hn::Sub(finite, whole)), whole);
}

template <class D, class V>
HWY_INLINE V reciprocal(D d, V x) {
  return hn::Div(hn::Set(d, 1), x);
}

#endif

template <class V>
HWY_INLINE bool round_at_once(V, uint16_t*) {
  return false;
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
