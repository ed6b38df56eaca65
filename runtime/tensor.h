// A tensor is a strided view: cheap to copy, never owns. An Arena (runtime/arena.h) owns the memory.
//
// Shape legend used in comments everywhere:
//   B batch rows  T tokens of a row  D d_model  H heads  P head dim  KV key/value heads  N state dim
//   G state groups  F FFN width  V vocabulary  Q chunk length  L layers
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace transxssm {

inline constexpr int kMaxRank = 5;

// Sizes of up to kMaxRank dims, outermost first.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  int rank() const { return rank_; }
  int64_t operator[](int dim) const { return sizes_[static_cast<size_t>(dim)]; }
  int64_t& operator[](int dim) { return sizes_[static_cast<size_t>(dim)]; }
  void append(int64_t size);
  int64_t num_elements() const;  // 1 for rank 0
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[4, 128]"

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;  // empty: stands for "absent" in optional fields
  // A contiguous, row-major view of `data`.
  Tensor(void* data, DType dtype, const Shape& shape);

  bool empty() const { return data_ == nullptr; }
  explicit operator bool() const { return data_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }  // in elements
  int64_t num_elements() const { return empty() ? 0 : shape_.num_elements(); }
  int64_t num_bytes() const { return num_elements() * dtype_bytes(dtype_); }
  bool is_contiguous() const;
  void* raw() const { return data_; }

  // First element, with a dtype check.
  template <class T>
  T* data() const {
    TRANSXSSM_CHECK(empty() || DTypeOf<T>::value == dtype_, "tensor {} read as {}", dtype_name(dtype_),
                    dtype_name(DTypeOf<T>::value));
    return static_cast<T*>(data_);
  }
  template <class T>
  T& at(std::initializer_list<int64_t> index) const {
    int64_t offset = 0;
    int dim = 0;
    for (int64_t i : index) offset += i * strides_[dim++];
    return data<T>()[offset];
  }

  // Elements [begin, begin + count) of one dim.
  Tensor slice(int dim, int64_t begin, int64_t count) const;
  // One index of a dim, which disappears.
  Tensor select(int dim, int64_t index) const;
  // Same elements, other shape; splits and merges dims, without copying. Fails where strides forbid it.
  Tensor reshape(const Shape& shape) const;
  // Two dims exchanged.
  Tensor transpose(int a, int b) const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  Shape shape_;
  Shape strides_;
};

// Element-wise copy between tensors of one shape and dtype on the host, whatever their strides.
void copy(const Tensor& from, const Tensor& to);
// Sets every byte of a contiguous tensor to zero.
void zero(const Tensor& tensor);

}  // namespace transxssm
