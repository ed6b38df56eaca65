#include <cstring>

#include "parallel/shared_segment.h"
#include "runtime/sanitizers.h"

// Highway's baseline has single lanes only: there the copy is an ordinary one.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "parallel/write_shared.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace transxssm::HWY_NAMESPACE {

void write(std::byte* to, const void* from, int64_t bytes) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<uint8_t> d;
  const auto vector = static_cast<int64_t>(hn::Lanes(d));
  auto* const out = reinterpret_cast<uint8_t*>(to);
  const auto* const in = static_cast<const uint8_t*>(from);
  int64_t i = 0;
  if (vector > 1) {
    for (; i + vector <= bytes; i += vector) hn::Stream(hn::LoadU(d, in + i), d, out + i);
    hwy::FlushStream();
  }
  if (i < bytes) std::memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
}

}  // namespace transxssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm {

HWY_EXPORT(write);

void write_shared(std::byte* to, const void* from, int64_t bytes) {
#ifdef TRANSXSSM_THREAD_SANITIZER  // it does not see stores past the caches
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
#else
  HWY_DYNAMIC_DISPATCH(write)(to, from, bytes);
#endif
}

}  // namespace transxssm
#endif
