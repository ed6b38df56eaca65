// How the summands of ranks become one tensor, on the host.
#pragma once

#include <span>

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

// out[i] = sources[0][i] + sources[1][i] + ... in that order (or their maximum), for `count` elements of f32,
// f64 or bf16. out may be one of the sources.
void combine_in_rank_order(std::span<const void* const> sources, DType dtype, void* out, int64_t count,
                           ReduceOp op);

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
