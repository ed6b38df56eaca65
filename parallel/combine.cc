#include "parallel/combine.h"

#include <algorithm>
#include <array>

// Plain loops, compiled once an instruction set; bf16 by the baseline's would take longer than its bytes.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "parallel/combine.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace transxssm::HWY_NAMESPACE {

template <class T>
void combine_elements(std::span<const void* const> sources, T* out, int64_t count, ReduceOp op) {
  using Wide = decltype(widened(T{}));
  constexpr int64_t kBlock = 512;
  std::array<Wide, kBlock> block;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(count - begin, kBlock);
    const T* first = static_cast<const T*>(sources[0]) + begin;
    for (int64_t i = 0; i < n; ++i) block[static_cast<size_t>(i)] = widened(first[i]);
    for (const void* source : sources.subspan(1)) {
      const T* s = static_cast<const T*>(source) + begin;
      if (op == ReduceOp::sum) {
        for (int64_t i = 0; i < n; ++i) block[static_cast<size_t>(i)] += widened(s[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) {
          block[static_cast<size_t>(i)] = combine(op, block[static_cast<size_t>(i)], widened(s[i]));
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) narrow(block[static_cast<size_t>(i)], out[begin + i]);
  }
}

void combine_tensors(std::span<const void* const> sources, DType dtype, void* out, int64_t count,
                     ReduceOp op) {
  switch (dtype) {
    case DType::f32:
      return combine_elements(sources, static_cast<float*>(out), count, op);
    case DType::f64:
      return combine_elements(sources, static_cast<double*>(out), count, op);
    case DType::bf16:
      return combine_elements(sources, static_cast<BFloat16*>(out), count, op);
    default:
      throw InternalError("a sum of {}", dtype_name(dtype));
  }
}

}  // namespace transxssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm {

HWY_EXPORT(combine_tensors);

void combine_in_rank_order(std::span<const void* const> sources, DType dtype, void* out, int64_t count,
                           ReduceOp op) {
  HWY_DYNAMIC_DISPATCH(combine_tensors)(sources, dtype, out, count, op);
}

}  // namespace transxssm
#endif
