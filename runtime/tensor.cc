#include "runtime/tensor.h"

#include <cstring>

namespace transxssm {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) append(size);
}

void Shape::append(int64_t size) {
  TRANSXSSM_CHECK(rank_ < kMaxRank, "more than {} dims", kMaxRank);
  sizes_[static_cast<size_t>(rank_++)] = size;
}

int64_t Shape::num_elements() const {
  int64_t count = 1;
  for (int dim = 0; dim < rank_; ++dim)
    if (__builtin_mul_overflow(count, (*this)[dim], &count))
      throw InternalError("shape {} overflows", to_string());
  return count;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int dim = 0; dim < rank_; ++dim)
    if ((*this)[dim] != other[dim]) return false;
  return true;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int dim = 0; dim < rank_; ++dim) text += (dim ? ", " : "") + std::to_string((*this)[dim]);
  return text + "]";
}

Tensor::Tensor(void* data, DType dtype, const Shape& shape) : data_(data), dtype_(dtype), shape_(shape) {
  strides_ = shape;
  int64_t stride = 1;
  for (int dim = shape.rank() - 1; dim >= 0; --dim) {
    strides_[dim] = stride;
    stride *= shape[dim];
  }
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int dim = rank() - 1; dim >= 0; --dim) {
    if (size(dim) != 1 && stride(dim) != expected) return false;
    expected *= size(dim);
  }
  return true;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t count) const {
  TRANSXSSM_CHECK(dim < rank() && begin >= 0 && count >= 0 && begin + count <= size(dim),
                  "slice [{}, {}) of dim {} of {}", begin, begin + count, dim, shape_.to_string());
  Tensor result = *this;
  result.data_ = static_cast<std::byte*>(data_) + begin * stride(dim) * dtype_bytes(dtype_);
  result.shape_[dim] = count;
  return result;
}

Tensor Tensor::select(int dim, int64_t index) const {
  Tensor result = slice(dim, index, 1);
  Shape shape, strides;
  for (int d = 0; d < rank(); ++d) {
    if (d == dim) continue;
    shape.append(size(d));
    strides.append(stride(d));
  }
  result.shape_ = shape;
  result.strides_ = strides;
  return result;
}

Tensor Tensor::transpose(int a, int b) const {
  Tensor result = *this;
  std::swap(result.shape_[a], result.shape_[b]);
  std::swap(result.strides_[a], result.strides_[b]);
  return result;
}

Tensor Tensor::reshape(const Shape& shape) const {
  TRANSXSSM_CHECK(shape.num_elements() == shape_.num_elements(), "reshape {} to {}", shape_.to_string(),
                  shape.to_string());
  Tensor result(data_, dtype_, shape);
  if (is_contiguous()) return result;
  // Match groups of old dims with groups of new dims of equal product; an old group must be mergeable.
  Shape sizes, strides;  // without dims of size one
  for (int dim = 0; dim < rank(); ++dim) {
    if (size(dim) == 1) continue;
    sizes.append(size(dim));
    strides.append(stride(dim));
  }
  int old_begin = 0, new_begin = 0;
  while (old_begin < sizes.rank() && new_begin < shape.rank()) {
    int old_end = old_begin + 1, new_end = new_begin + 1;
    int64_t old_product = sizes[old_begin], new_product = shape[new_begin];
    while (old_product != new_product) {
      if (new_product < old_product)
        new_product *= shape[new_end++];
      else
        old_product *= sizes[old_end++];
    }
    for (int dim = old_begin; dim + 1 < old_end; ++dim)
      TRANSXSSM_CHECK(strides[dim] == sizes[dim + 1] * strides[dim + 1], "reshape {} to {} needs a copy",
                      shape_.to_string(), shape.to_string());
    result.strides_[new_end - 1] = strides[old_end - 1];
    for (int dim = new_end - 1; dim > new_begin; --dim)
      result.strides_[dim - 1] = result.strides_[dim] * shape[dim];
    old_begin = old_end;
    new_begin = new_end;
  }
  return result;
}

namespace {

void copy_dims(const std::byte* from, std::byte* to, const Tensor& a, const Tensor& b, int dim,
               int64_t bytes) {
  if (dim == a.rank()) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  if (dim == a.rank() - 1 && a.stride(dim) == 1 && b.stride(dim) == 1) {
    std::memcpy(to, from, static_cast<size_t>(bytes * a.size(dim)));
    return;
  }
  for (int64_t i = 0; i < a.size(dim); ++i)
    copy_dims(from + i * a.stride(dim) * bytes, to + i * b.stride(dim) * bytes, a, b, dim + 1, bytes);
}

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  TRANSXSSM_CHECK(from.shape() == to.shape() && from.dtype() == to.dtype(), "copy {} {} to {} {}",
                  dtype_name(from.dtype()), from.shape().to_string(), dtype_name(to.dtype()),
                  to.shape().to_string());
  if (from.num_elements() == 0) return;
  copy_dims(static_cast<const std::byte*>(from.raw()), static_cast<std::byte*>(to.raw()), from, to, 0,
            dtype_bytes(from.dtype()));
}

void zero(const Tensor& tensor) {
  TRANSXSSM_CHECK(tensor.is_contiguous(), "zero of a strided tensor");
  if (!tensor.empty()) std::memset(tensor.raw(), 0, static_cast<size_t>(tensor.num_bytes()));
}

}  // namespace transxssm
