// How the summands of ranks become one tensor, on the host.
#pragma once

#include <algorithm>
#include <array>

#include "parallel/communicator.h"

namespace transxssm {

template <class T>
T combine(ReduceOp op, T a, T b) {
  if (op == ReduceOp::sum) return a + b;
  return a < b || b != b ? b : a;  // a NaN on either side stays
}

// bf16 travels; its sums are formed in f32 and rounded once.
inline float widened(BFloat16 x) {
  return to_float(x);
}
template <class T>
T widened(T x) {
  return x;
}
inline void narrow(float x, BFloat16& out) {
  out = to_bfloat16(x);
}
template <class T>
void narrow(T x, T& out) {
  out = x;
}

// out[i] = s(0)[i] + s(1)[i] + ... in that order. out may be one of the sources.
template <class T, class Source>
void combine_in_rank_order(int num_sources, Source&& source, T* out, int64_t count, ReduceOp op) {
  using Wide = decltype(widened(T{}));
  constexpr int64_t kBlock = 512;
  std::array<Wide, kBlock> block;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(count - begin, kBlock);
    const T* first = source(0) + begin;
    for (int64_t i = 0; i < n; ++i) block[static_cast<size_t>(i)] = widened(first[i]);
    for (int r = 1; r < num_sources; ++r) {
      const T* s = source(r) + begin;
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

// Calls `fn` with the elements of a tensor as what they are.
template <class Fn>
void with_elements(const Tensor& tensor, const char* operation, Fn&& fn) {
  switch (tensor.dtype()) {
    case DType::f32:
      return fn(tensor.data<float>());
    case DType::f64:
      return fn(tensor.data<double>());
    case DType::bf16:
      return fn(tensor.data<BFloat16>());
    default:
      throw InternalError("{} of {}", operation, dtype_name(tensor.dtype()));
  }
}

}  // namespace transxssm
