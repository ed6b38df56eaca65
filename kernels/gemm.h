// Matrix product: c[M,N] (+)= op(a) op(b). Tensors are 2-D with unit stride in the last dim. All of one type,
// or a and b bf16 with c bf16 (not accumulated) or f32: sums are formed in f32. y[T,out] = x[T,in]
// W[out,in]^T is Gemm{.a = x, .b = W, .c = y, .transpose_b = true}.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

// A second copy of a matrix that is the right operand of many products, in the layout in which the processor
// takes it fastest. Whoever changes the matrix sets `stale`; the next product forms the copy again.
struct PackedMatrix {
  Tensor memory;  // [packed_bytes()] u8; empty: no copy
  bool stale = true;
};
// Bytes of the copy of a [k,n] right operand; 0 where `device` has no faster layout than the plain one.
int64_t packed_bytes(const Device& device, DType dtype, int64_t k, int64_t n);

struct Gemm {
  Tensor a;  // [M,K], or [K,M] when transpose_a
  Tensor b;  // [K,N], or [N,K] when transpose_b
  Tensor c;  // [M,N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // c += instead of c =
  // Of op(b), with this transpose_b and no other; null: none. Not with transpose_a.
  PackedMatrix* packed_b = nullptr;
};
void run(Stream& stream, const Gemm& args);

}  // namespace transxssm
