#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

// The shape of both tensors without its last dim, neighbouring dims merged where the strides of both allow
// it.
struct OuterDims {
  int rank = 0;
  int64_t sizes[kMaxRank], from_strides[kMaxRank], to_strides[kMaxRank];  // innermost first
};
__device__ inline void row_offsets(const OuterDims& outer, int64_t row, int64_t& from, int64_t& to) {
  from = to = 0;
  for (int dim = 0; dim < outer.rank; ++dim) {
    const int64_t index = row % outer.sizes[dim];
    row /= outer.sizes[dim];
    from += index * outer.from_strides[dim];
    to += index * outer.to_strides[dim];
  }
}

// Elements as they are, a unit of 1 to 16 bytes a thread. Floor: every byte read and written.
template <class Unit>
__global__ void __launch_bounds__(kRowThreads)
    copy_rows(RowGrid grid, OuterDims outer, const Unit* from, Unit* to) {
  const RowPlace at = row_place<1>(grid);
  if (!at.inside) return;
  int64_t i, j;
  row_offsets(outer, at.row, i, j);
  to[j + at.column] = from[i + at.column];
}

// Floor, bytes an element: 6.
template <class From, class To, int N>
__global__ void __launch_bounds__(kRowThreads)
    convert_rows(RowGrid grid, OuterDims outer, const From* from, To* to) {
  const RowPlace at = row_place<N>(grid);
  if (!at.inside) return;
  int64_t i, j;
  row_offsets(outer, at.row, i, j);
  float values[N];
  load<N>(from + i + at.column, values);
  store<N>(to + j + at.column, values);
}

// Rows of a copy: `width` elements each, as long as merging makes them.
struct Layout {
  int64_t rows = 1, width = 1;
  OuterDims outer;
};
Layout layout_of(const Tensor& from, const Tensor& to) {
  Layout layout;
  if (from.rank() == 0) return layout;
  int dim = from.rank() - 1;
  layout.width = from.size(dim--);
  for (; dim >= 0; --dim) {
    const int64_t size = from.size(dim), i = from.stride(dim), j = to.stride(dim);
    OuterDims& outer = layout.outer;
    if (size == 1) continue;
    layout.rows *= size;
    const int last = outer.rank - 1;
    if (last < 0 && i == layout.width && j == layout.width) {
      layout.width *= size;
      layout.rows = 1;
    } else if (last >= 0 && i == outer.from_strides[last] * outer.sizes[last] &&
               j == outer.to_strides[last] * outer.sizes[last]) {
      outer.sizes[last] *= size;
    } else {
      outer.sizes[outer.rank] = size;
      outer.from_strides[outer.rank] = i;
      outer.to_strides[outer.rank++] = j;
    }
  }
  return layout;
}

// The largest power of two that divides all addresses, strides and the width, in bytes; at most 16.
int64_t unit_bytes(const Tensor& from, const Tensor& to, const Layout& layout) {
  const int64_t size = dtype_bytes(from.dtype());
  uint64_t bits = 16 | reinterpret_cast<uintptr_t>(from.raw()) | reinterpret_cast<uintptr_t>(to.raw()) |
                  static_cast<uint64_t>(layout.width * size);
  for (int dim = 0; dim < layout.outer.rank; ++dim)
    bits |= static_cast<uint64_t>((layout.outer.from_strides[dim] | layout.outer.to_strides[dim]) * size);
  return static_cast<int64_t>(bits & (~bits + 1));
}

template <class Unit>
void copy_units(Stream& stream, const Tensor& from, const Tensor& to, Layout layout) {
  const auto in_units = [&](int64_t elements) {
    return elements * dtype_bytes(from.dtype()) / static_cast<int64_t>(sizeof(Unit));
  };
  for (int dim = 0; dim < layout.outer.rank; ++dim) {
    layout.outer.from_strides[dim] = in_units(layout.outer.from_strides[dim]);
    layout.outer.to_strides[dim] = in_units(layout.outer.to_strides[dim]);
  }
  const RowGrid grid = make_row_grid(layout.rows, in_units(layout.width), 1);
  TRANSXSSM_LAUNCH(copy_rows<Unit>, launch_shape(grid), queue_of(stream), grid, layout.outer,
                   data_of<const Unit>(from), data_of<Unit>(to));
}

template <class From, class To>
void convert(Stream& stream, const Tensor& from, const Tensor& to, const Layout& layout) {
  constexpr int kCount = kVector<From, To>;
  const bool vectors = unit_bytes(from, to, layout) == 16 && layout.width % kCount == 0;
  with_vector<kCount>(vectors, [&](auto count) {
    constexpr int N = decltype(count)::value;
    const RowGrid grid = make_row_grid(layout.rows, layout.width, N);
    TRANSXSSM_LAUNCH(convert_rows<From, To, N>, launch_shape(grid), queue_of(stream), grid, layout.outer,
                     data_of<const From>(from), data_of<To>(to));
  });
}

}  // namespace

void run(Stream& stream, const Copy& args) {
  const Tensor &from = args.from, &to = args.to;
  expect(to, "Copy.to", to.dtype(), from.shape());
  expect(from, "Copy.from", from.dtype(), from.shape());
  if (from.num_elements() == 0) return;
  const Layout layout = layout_of(from, to);
  if (from.dtype() == DType::bf16 && to.dtype() == DType::f32)
    return convert<bf16, float>(stream, from, to, layout);
  if (from.dtype() == DType::f32 && to.dtype() == DType::bf16)
    return convert<float, bf16>(stream, from, to, layout);
  TRANSXSSM_CHECK(from.dtype() == to.dtype(), "copy of {} to {}", dtype_name(from.dtype()),
                  dtype_name(to.dtype()));
  switch (unit_bytes(from, to, layout)) {
    case 16:
      return copy_units<uint4>(stream, from, to, layout);
    case 8:
      return copy_units<uint64_t>(stream, from, to, layout);
    case 4:
      return copy_units<uint32_t>(stream, from, to, layout);
    case 2:
      return copy_units<uint16_t>(stream, from, to, layout);
    default:
      return copy_units<uint8_t>(stream, from, to, layout);
  }
}

}  // namespace transxssm::cuda
