#include "kernels/cpu/peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>

#include "runtime/cpu_features.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/peak.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Twelve sums that do not wait for each other: the latency of a multiply-add is hidden. Returns its
// operations.
double multiply_add(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 1e-3f);
  // They begin apart, or the compiler would see that all are the same.
  const auto begin = [&](int k) HWY_ATTR { return hn::Set(d, static_cast<float>(k)); };
  auto s0 = begin(0), s1 = begin(1), s2 = begin(2), s3 = begin(3), s4 = begin(4), s5 = begin(5);
  auto s6 = begin(6), s7 = begin(7), s8 = begin(8), s9 = begin(9), s10 = begin(10), s11 = begin(11);
  for (int64_t i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(s0, a, b), s1 = hn::MulAdd(s1, a, b), s2 = hn::MulAdd(s2, a, b);
    s3 = hn::MulAdd(s3, a, b), s4 = hn::MulAdd(s4, a, b), s5 = hn::MulAdd(s5, a, b);
    s6 = hn::MulAdd(s6, a, b), s7 = hn::MulAdd(s7, a, b), s8 = hn::MulAdd(s8, a, b);
    s9 = hn::MulAdd(s9, a, b), s10 = hn::MulAdd(s10, a, b), s11 = hn::MulAdd(s11, a, b);
  }
  const auto left =
      hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(left, hn::Add(hn::Add(s8, s9), hn::Add(s10, s11)))));
  return 2.0 * 12 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(multiply_add);

namespace {

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) double dot_products(int64_t rounds, float* sink) {
  __m512 sums[12];
  for (int k = 0; k < 12; ++k) sums[k] = _mm512_set1_ps(static_cast<float>(k));
  const __m512 ones = _mm512_set1_ps(1.0f);
  const __m512bh a = _mm512_cvtne2ps_pbh(ones, ones);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) sums[k] = _mm512_dpbf16_ps(sums[k], a, a);
  }
  __m512 total = sums[0];
  for (int k = 1; k < 12; ++k) total = _mm512_add_ps(total, sums[k]);
  *sink = _mm512_cvtss_f32(total);
  return 4.0 * 12 * 16 * static_cast<double>(rounds);
}
#endif

// The best of a few goes on all threads.
template <class Fn>
double measure(const Stream& stream, Fn&& go) {
  constexpr int64_t kRounds = 1'000'000;
  constexpr int kGoes = 5;
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int i = 0; i < kGoes; ++i) {
    std::atomic<double> operations = 0;
    const Clock::time_point begin = Clock::now();
    on_team(stream.num_threads(), [&](int, int) {
      volatile float kept;
      float sink = 0;
      operations += go(kRounds, &sink);
      kept = sink;
      static_cast<void>(kept);
    });
    best = std::max(best, operations.load() / std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

}  // namespace

double measure_flops_f32(const Stream& stream) {
  return measure(
      stream, [](int64_t rounds, float* sink) { return HWY_DYNAMIC_DISPATCH(multiply_add)(rounds, sink); });
}

double measure_flops_bf16(const Stream& stream) {
#if defined(__x86_64__)
  if (cpu_has_bf16()) return measure(stream, dot_products);
#endif
  return measure_flops_f32(stream);
}

}  // namespace transxssm::cpu
#endif
