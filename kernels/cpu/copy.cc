#include "kernels/copy.h"

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

namespace {

void copy_row(const BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}
void copy_row(const float* from, BFloat16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

// Offset, in elements, of a row of the last dim.
int64_t row_offset(const Tensor& tensor, int64_t row) {
  int64_t offset = 0;
  for (int dim = tensor.rank() - 2; dim >= 0; --dim) {
    offset += row % tensor.size(dim) * tensor.stride(dim);
    row /= tensor.size(dim);
  }
  return offset;
}

}  // namespace

void run(Stream& stream, const Copy& args) {
  const Tensor &from = args.from, &to = args.to;
  expect(to, "Copy.to", to.dtype(), from.shape());
  expect(from, "Copy.from", from.dtype(), from.shape());
  if (from.num_elements() == 0) return;
  const bool widens = from.dtype() == DType::bf16 && to.dtype() == DType::f32;
  const bool rounds = from.dtype() == DType::f32 && to.dtype() == DType::bf16;
  TRANSXSSM_CHECK(widens || rounds || from.dtype() == to.dtype(), "copy of {} to {}",
                  dtype_name(from.dtype()), dtype_name(to.dtype()));
  const int64_t width = from.rank() > 0 ? from.size(from.rank() - 1) : 1;
  const int64_t size = dtype_bytes(from.dtype());
  parallel_ranges(stream, from.num_elements() / width, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t i = row_offset(from, row), j = row_offset(to, row);
      if (widens)
        copy_row(from.data<BFloat16>() + i, to.data<float>() + j, width);
      else if (rounds)
        copy_row(from.data<float>() + i, to.data<BFloat16>() + j, width);
      else
        std::memmove(static_cast<std::byte*>(to.raw()) + j * size,
                     static_cast<const std::byte*>(from.raw()) + i * size, static_cast<size_t>(width * size));
    }
  });
}

}  // namespace transxssm::cpu
