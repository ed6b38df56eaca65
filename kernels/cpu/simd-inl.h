// Loops over the lanes of a row, shared by the operations' SIMD code. Compiled once an instruction set, by
// Highway's foreach_target: hence the guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SIMD_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SIMD_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "kernels/cpu/avx512-inl.h"
#include "runtime/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A vector of `d` from memory; bf16 is widened.
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* x) {
  return hn::LoadU(d, x);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const BFloat16* x) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(hn::Rebind<uint16_t, D>(), reinterpret_cast<const uint16_t*>(x));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

// A vector to memory, rounded to bf16 as to_bfloat16 does (Highway's conversion cuts off).
template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, hn::TFromD<D>* x) {
  hn::StoreU(v, d, x);
}
template <class D>
HWY_INLINE void store(hn::Vec<D> v, D, BFloat16* x) {
  if (HWY_LIKELY(round_at_once(v, reinterpret_cast<uint16_t*>(x)))) return;
  const hn::Rebind<uint32_t, D> d32;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto nearest = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff)));
  const auto nan = hn::Or(bits, hn::Set(d32, 0x400000));
  const auto rounded = hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), nan, nearest);
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(rounded)), d16, reinterpret_cast<uint16_t*>(x));
}

// Calls fn(d, i) for the elements i, i + 1, .., i + Lanes(d) - 1 of [0, count): full vectors, then single
// lanes.
template <class T, class Fn>
HWY_INLINE void for_lanes(int64_t count, Fn&& fn) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) fn(d, i);
  for (; i < count; ++i) fn(hn::CappedTag<T, 1>(), i);
}

// Sum of term(d, i) over [0, count), in four vectors of partial sums: rounding grows as in a pairwise sum.
template <class T, class Fn>
HWY_INLINE T sum_lanes(int64_t count, Fn&& term) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = hn::Add(sum0, term(d, i));
    sum1 = hn::Add(sum1, term(d, i + lanes));
    sum2 = hn::Add(sum2, term(d, i + 2 * lanes));
    sum3 = hn::Add(sum3, term(d, i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) sum0 = hn::Add(sum0, term(d, i));
  T sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  for (; i < count; ++i) sum += hn::GetLane(term(hn::CappedTag<T, 1>(), i));
  return sum;
}

// Largest element of x[0, count) and `floor`; NaNs are passed over.
template <class T, class A>
HWY_INLINE A max_lanes(const T* x, int64_t count, A floor) {
  const hn::ScalableTag<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto max0 = hn::Set(d, floor), max1 = max0;
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    max0 = hn::Max(load(d, x + i), max0);
    max1 = hn::Max(load(d, x + i + lanes), max1);
  }
  A max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  for (; i < count; ++i) {
    const A v = hn::GetLane(load(hn::CappedTag<A, 1>(), x + i));
    max = v > max ? v : max;
  }
  return max;
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
