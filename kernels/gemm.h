// Matrix product: c[M,N] (+)= op(a) op(b). Tensors are 2-D with unit stride in the last dim. All of one type,
// or a and b bf16 with c bf16 (not accumulated) or f32: sums are formed in f32. y[T,out] = x[T,in]
// W[out,in]^T is Gemm{.a = x, .b = W, .c = y, .transpose_b = true}.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct Gemm {
  Tensor a;  // [M,K], or [K,M] when transpose_a
  Tensor b;  // [K,N], or [N,K] when transpose_b
  Tensor c;  // [M,N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // c += instead of c =
};
void run(Stream& stream, const Gemm& args);

}  // namespace transxssm
