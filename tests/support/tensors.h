// Tensors that own their memory, comparisons and gradient checks for the tests of operations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/arena.h"
#include "runtime/rng.h"
#include "runtime/tensor.h"
#include "tests/support/device.h"

namespace transxssm {

// Element `index` (row-major, whatever the strides) of any dtype, as a double.
inline int64_t element_offset(const Tensor& tensor, int64_t index) {
  int64_t offset = 0;
  for (int dim = tensor.rank() - 1; dim >= 0; --dim) {
    offset += index % tensor.size(dim) * tensor.stride(dim);
    index /= tensor.size(dim);
  }
  return offset;
}

inline double get(const Tensor& tensor, int64_t index) {
  const int64_t i = element_offset(tensor, index);
  switch (tensor.dtype()) {
    case DType::f32:
      return static_cast<double>(tensor.data<float>()[i]);
    case DType::f64:
      return tensor.data<double>()[i];
    case DType::i32:
      return tensor.data<int32_t>()[i];
    case DType::i64:
      return static_cast<double>(tensor.data<int64_t>()[i]);
    case DType::u8:
      return tensor.data<uint8_t>()[i];
    case DType::bf16:
      return static_cast<double>(to_float(tensor.data<BFloat16>()[i]));
  }
  throw InternalError("get of {}", dtype_name(tensor.dtype()));
}

inline void set(const Tensor& tensor, int64_t index, double value) {
  const int64_t i = element_offset(tensor, index);
  switch (tensor.dtype()) {
    case DType::f32:
      tensor.data<float>()[i] = static_cast<float>(value);
      return;
    case DType::f64:
      tensor.data<double>()[i] = value;
      return;
    case DType::i32:
      tensor.data<int32_t>()[i] = static_cast<int32_t>(value);
      return;
    case DType::i64:
      tensor.data<int64_t>()[i] = static_cast<int64_t>(value);
      return;
    case DType::u8:
      tensor.data<uint8_t>()[i] = static_cast<uint8_t>(value);
      return;
    case DType::bf16:
      tensor.data<BFloat16>()[i] = to_bfloat16(static_cast<float>(value));
      return;
  }
  throw InternalError("set of {}", dtype_name(tensor.dtype()));
}

// A tensor with memory of its own; use it wherever a Tensor is asked for. With `padding`, rows of the last
// dim lie that many elements apart, rounded up to what the test's device asks for: a strided view. The gaps
// hold NaN (0xff bytes): a kernel that reads them spoils its result, one that writes them fails
// padding_intact().
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, Shape shape, int64_t padding = 0) {
    const int last = shape.rank() - 1;
    const int64_t width = last >= 0 ? shape[last] : 1;
    if (last >= 0) shape[last] += padding;
    if (last >= 1) {
      const int64_t multiple = std::max<int64_t>(1, test_device().row_bytes / dtype_bytes(dtype));
      shape[last] = (shape[last] + multiple - 1) / multiple * multiple;
    }
    bytes_ = shape.num_elements() * dtype_bytes(dtype);
    if (const auto allocate = test_device().allocate) {
      shared_ = allocate(std::max(bytes_, kAlignment));
      whole_ = Tensor(shared_.get(), dtype, shape);
    } else {
      arena_ = Arena(std::max(bytes_, kAlignment));
      whole_ = arena_.carver().take(dtype, shape);
    }
    view_ = last >= 0 ? whole_.slice(last, 0, width) : whole_;
    if (last >= 0 && shape[last] != width) {
      std::memset(whole_.raw(), 0xff, static_cast<size_t>(bytes_));
      for (int64_t i = 0; i < view_.num_elements(); ++i) set(view_, i, 0);
    }
  }
  operator const Tensor&() const { return view_; }
  const Tensor& view() const { return view_; }
  double operator[](int64_t index) const { return get(view_, index); }
  bool padding_intact() const {
    if (view_.rank() == 0 || view_.size(view_.rank() - 1) == whole_.size(view_.rank() - 1)) return true;
    const int last = view_.rank() - 1;
    const int64_t width = view_.size(last), stride = whole_.size(last), size = dtype_bytes(view_.dtype());
    const auto* data = static_cast<const unsigned char*>(whole_.raw());
    for (int64_t i = 0; i < bytes_; ++i)
      if (i / size % stride >= width && data[i] != 0xff) return false;
    return true;
  }

 private:
  Arena arena_;
  std::shared_ptr<void> shared_;  // in its place on a device
  Tensor whole_, view_;
  int64_t bytes_ = 0;
};

// Zeros.
template <class T>
OwnedTensor zeros(const Shape& shape, int64_t padding = 0) {
  return OwnedTensor(DTypeOf<T>::value, shape, padding);
}

template <class T>
OwnedTensor filled(const Shape& shape, double value, int64_t padding = 0) {
  OwnedTensor result(DTypeOf<T>::value, shape, padding);
  for (int64_t i = 0; i < result.view().num_elements(); ++i) set(result, i, value);
  return result;
}

// Normal numbers of mean `mean`, standard deviation `scale`: the same for all types but for rounding.
template <class T>
OwnedTensor random_normal(const Shape& shape, uint64_t seed, double scale = 1, double mean = 0,
                          int64_t padding = 0) {
  OwnedTensor result(DTypeOf<T>::value, shape, padding);
  const Rng rng(seed, "test");
  for (int64_t i = 0; i < result.view().num_elements(); ++i)
    set(result, i, static_cast<float>(mean + scale * rng.normal(static_cast<uint64_t>(i))));
  return result;
}

// Integers in [begin, end).
template <class T>
OwnedTensor random_integers(const Shape& shape, uint64_t seed, int64_t begin, int64_t end) {
  OwnedTensor result(DTypeOf<T>::value, shape);
  const Rng rng(seed, "integers");
  for (int64_t i = 0; i < result.view().num_elements(); ++i)
    set(result, i,
        static_cast<double>(begin + static_cast<int64_t>(rng.below(static_cast<uint64_t>(i),
                                                                   static_cast<uint64_t>(end - begin)))));
  return result;
}

// A contiguous copy, or one with `padding`.
inline OwnedTensor clone(const Tensor& from, int64_t padding = 0) {
  OwnedTensor result(from.dtype(), from.shape(), padding);
  copy(from, result);
  return result;
}

// The same values as elements of type T.
template <class T>
OwnedTensor converted(const Tensor& from, int64_t padding = 0) {
  OwnedTensor result(DTypeOf<T>::value, from.shape(), padding);
  for (int64_t i = 0; i < from.num_elements(); ++i) set(result, i, get(from, i));
  return result;
}

inline std::vector<double> values(const Tensor& tensor) {
  std::vector<double> result(static_cast<size_t>(tensor.num_elements()));
  for (size_t i = 0; i < result.size(); ++i) result[i] = get(tensor, static_cast<int64_t>(i));
  return result;
}

// Largest difference over the largest expected magnitude; infinite where `got` has a NaN or another size.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, magnitude = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;  // also equal infinities
    const double d = std::abs(got[i] - expected[i]);
    if (!(d <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, d);
  }
  for (double v : expected)
    if (std::isfinite(v)) magnitude = std::max(magnitude, std::abs(v));
  return difference == 0 ? 0 : difference / std::max(magnitude, 1e-30);
}
inline double relative_error(const Tensor& got, const std::vector<double>& expected) {
  return relative_error(values(got), expected);
}
inline double relative_error(const Tensor& got, const Tensor& expected) {
  return relative_error(values(got), values(expected));
}

// Bound of relative_error for results computed in f32 or f64 and stored as T. A bf16 has 8 significant bits:
// rounding to nearest moves a number by at most 2^-8 of itself, and so of the largest; 1% more for what the
// error in f32 takes to the other side of a tie.
template <class T>
constexpr double tolerance(double f32, double f64) {
  return sizeof(T) == 8 ? f64 : sizeof(T) == 4 ? f32 : 1.01 / 256 + f32;
}

// The type of weights and statistics beside activations of type T.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// The same shape, dtype and bits.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const int64_t size = dtype_bytes(a.dtype());
  for (int64_t i = 0; i < a.num_elements(); ++i)
    if (std::memcmp(static_cast<const char*>(a.raw()) + element_offset(a, i) * size,
                    static_cast<const char*>(b.raw()) + element_offset(b, i) * size,
                    static_cast<size_t>(size)))
      return false;
  return true;
}

// Sum of a * b: a loss whose gradient with respect to a is b.
inline double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.num_elements(); ++i) sum += get(a, i) * get(b, i);
  return sum;
}

// Largest difference between `gradient` and central differences of loss() with respect to x (f64), relative
// to the largest of the differences checked. At most `samples` elements, spread over x. loss() must run the
// forward afresh.
inline double gradcheck(const std::function<double()>& loss, const Tensor& x, const Tensor& gradient,
                        double step = 1e-5, int64_t samples = 64) {
  TRANSXSSM_CHECK(x.dtype() == DType::f64 && x.shape() == gradient.shape(),
                  "gradcheck needs f64 of one shape");
  const int64_t count = x.num_elements();
  std::vector<double> numeric, analytic;
  for (int64_t k = 0; k < std::min(samples, count); ++k) {
    const int64_t i = count <= samples ? k : k * count / samples + k % std::max<int64_t>(1, count / samples);
    const double saved = get(x, i);
    set(x, i, saved + step);
    const double above = loss();
    set(x, i, saved - step);
    const double below = loss();
    set(x, i, saved);
    numeric.push_back((above - below) / (2 * step));
    analytic.push_back(get(gradient, i));
  }
  return relative_error(analytic, numeric);
}

}  // namespace transxssm
