#include "kernels/copy.h"

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/copy.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

void widen(const BFloat16* from, float* to, int64_t count) {
  for_lanes<float>(count, [&](auto d, int64_t i) HWY_ATTR { store(load(d, from + i), d, to + i); });
}
void round(const float* from, BFloat16* to, int64_t count) {
  for_lanes<float>(count, [&](auto d, int64_t i) HWY_ATTR { store(load(d, from + i), d, to + i); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(widen);
HWY_EXPORT(round);

namespace {

// Offset, in elements, of a row of the last dim.
int64_t row_offset(const Tensor& tensor, int64_t row) {
  int64_t offset = 0;
  for (int dim = tensor.rank() - 2; dim >= 0; --dim) {
    offset += row % tensor.size(dim) * tensor.stride(dim);
    row /= tensor.size(dim);
  }
  return offset;
}

void copy_row(const Tensor& from, int64_t i, const Tensor& to, int64_t j, int64_t width) {
  if (from.dtype() == to.dtype()) {
    const int64_t size = dtype_bytes(from.dtype());
    std::memmove(static_cast<std::byte*>(to.raw()) + j * size,
                 static_cast<const std::byte*>(from.raw()) + i * size, static_cast<size_t>(width * size));
  } else if (from.dtype() == DType::bf16) {
    HWY_DYNAMIC_DISPATCH(widen)(from.data<BFloat16>() + i, to.data<float>() + j, width);
  } else {
    HWY_DYNAMIC_DISPATCH(round)(from.data<float>() + i, to.data<BFloat16>() + j, width);
  }
}

}  // namespace

void run(Stream& stream, const Copy& args) {
  const bool contiguous = args.from.is_contiguous() && args.to.is_contiguous();
  expect(args.to, "Copy.to", args.to.dtype(), args.from.shape());
  expect(args.from, "Copy.from", args.from.dtype(), args.from.shape());
  if (args.from.num_elements() == 0) return;
  const DType one = args.from.dtype(), other = args.to.dtype();
  TRANSXSSM_CHECK(one == other || (one == DType::bf16 && other == DType::f32) ||
                      (one == DType::f32 && other == DType::bf16),
                  "copy of {} to {}", dtype_name(one), dtype_name(other));
  if (contiguous)  // rows of any length are as good as one long row
    return parallel_ranges(stream, args.from.num_elements(), 8192, [&](int64_t begin, int64_t end) {
      copy_row(args.from, begin, args.to, begin, end - begin);
    });
  const int64_t width = args.from.size(args.from.rank() - 1);
  parallel_ranges(
      stream, args.from.num_elements() / width, row_grain(width), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          copy_row(args.from, row_offset(args.from, row), args.to, row_offset(args.to, row), width);
      });
}

}  // namespace transxssm::cpu
#endif
