// Views and checks the operations share.
#pragma once

#include <algorithm>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm::cpu {

// Rows of a [T,D] tensor with unit stride in D and any stride in T.
template <class T>
class Rows {
 public:
  explicit Rows(const Tensor& tensor)
      : data_(tensor.data<T>()), stride_(tensor.rank() == 2 ? tensor.stride(0) : 0) {}
  T* operator[](int64_t row) const { return data_ + row * stride_; }

 private:
  T* data_;
  int64_t stride_;
};

// An internal error unless `tensor` has this dtype and shape and unit stride in its last dim. `name` is
// "Operation.field". A tensor without elements may be empty.
inline void expect(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) {
  if (shape.num_elements() == 0 && tensor.empty()) return;
  TRANSXSSM_CHECK(!tensor.empty(), "{} is missing", name);
  TRANSXSSM_CHECK(tensor.dtype() == dtype && tensor.shape() == shape, "{} is {} {}, not {} {}", name,
                  dtype_name(tensor.dtype()), tensor.shape().to_string(), dtype_name(dtype),
                  shape.to_string());
  const int last = shape.rank() - 1;
  TRANSXSSM_CHECK(last < 0 || shape[last] <= 1 || tensor.stride(last) == 1,
                  "{} has stride {} in its last dim", name, tensor.stride(last));
}
inline void expect_or_empty(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) {
  if (tensor) expect(tensor, name, dtype, shape);
}

// What an operation on elements of type T computes in.
template <class T>
struct ArithmeticOf {
  using type = T;
};
template <>
struct ArithmeticOf<BFloat16> {
  using type = float;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;
inline DType arithmetic_dtype(DType dtype) {
  return dtype == DType::bf16 ? DType::f32 : dtype;
}

// An internal error unless the CPU computes in this dtype.
inline void expect_float(const Tensor& tensor, const char* name) {
  TRANSXSSM_CHECK(tensor.dtype() == DType::f32 || tensor.dtype() == DType::f64,
                  "{} is {}: the CPU computes in f32 and f64", name, dtype_name(tensor.dtype()));
}
// The same for activations, which may be stored in bf16.
inline void expect_activation(const Tensor& tensor, const char* name) {
  if (tensor.dtype() != DType::bf16) expect_float(tensor, name);
}

// Calls fn(T{}) with the type of an activation's dtype.
template <class Fn>
void with_type(DType dtype, Fn&& fn) {
  if (dtype == DType::f32)
    fn(float{});
  else if (dtype == DType::bf16)
    fn(BFloat16{});
  else
    fn(double{});
}

// Calls fn(S{}, T{}) with the types of a residual stream and of the branches that meet it: the same, or f32
// and bf16.
template <class Fn>
void with_types(DType stream, DType branch, Fn&& fn) {
  if (stream == branch)
    with_type(branch, [&](auto type) { fn(type, type); });
  else
    fn(float{}, BFloat16{});
}
// An internal error unless the two are such a pair.
inline void expect_stream(const Tensor& stream, const char* name, DType branch) {
  expect_activation(stream, name);
  TRANSXSSM_CHECK(stream.dtype() == branch || (stream.dtype() == DType::f32 && branch == DType::bf16),
                  "{} is {} beside {}", name, dtype_name(stream.dtype()), dtype_name(branch));
}

// Fewest rows worth a thread of their own.
inline int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(width, 1));
}

// Sums over rows (gradients of per-channel weights) are formed in blocks of this many rows, and the blocks'
// sums added in order: the same bits for any number of threads.
inline constexpr int64_t kRowsPerPartial = 32;
inline int64_t num_partials(int64_t rows) {
  return (rows + kRowsPerPartial - 1) / kRowsPerPartial;
}

// total[j] += sum over blocks of partials[block][j], in order, in f64.
template <class T>
void add_partials(const Stream& stream, const T* partials, int64_t blocks, int64_t width, T* total) {
  constexpr int64_t kTile = 64;
  parallel_ranges(stream, width, std::max(kTile, row_grain(blocks)), [=](int64_t begin, int64_t end) {
    for (int64_t j0 = begin; j0 < end; j0 += kTile) {
      const int64_t count = std::min(kTile, end - j0);
      double sums[kTile] = {};
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<double>(partials[block * width + j0 + j]);
      for (int64_t j = 0; j < count; ++j)
        total[j0 + j] = static_cast<T>(static_cast<double>(total[j0 + j]) + sums[j]);
    }
  });
}
inline void add_partials(const Stream& stream, const Tensor& partials, const Tensor& total) {
  if (total.num_elements() == 0) return;
  if (total.dtype() == DType::f32)
    add_partials(stream, partials.data<float>(), partials.size(0), partials.size(1), total.data<float>());
  else
    add_partials(stream, partials.data<double>(), partials.size(0), partials.size(1), total.data<double>());
}

}  // namespace transxssm::cpu
