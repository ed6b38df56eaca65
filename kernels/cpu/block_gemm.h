// Small matrix products on operands that fit in a cache: no packing, one thread, no allocation. The chunked
// scan and attention are made of these; large products go to kernels/gemm.h.
#pragma once

#include <cstdint>

namespace transxssm::cpu {

// Left operand: element (m, k) is data[m * row + k * column], so that a transposed one costs nothing.
template <class T>
struct StridedMatrix {
  const T* data;
  int64_t row;
  int64_t column;
};

// c[m,n] = beta c + diag(scale) a[m,k] b[k,n], the diagonal all ones without `scale`; c is not read with
// beta 0. Rows of b and c have unit stride, ldb and ldc elements apart. The sum over k runs upwards, one
// fused multiply-add an element (where the processor has them).
void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<float> a, const float* b, int64_t ldb,
                float* c, int64_t ldc, float beta, const float* scale = nullptr);
void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<double> a, const double* b, int64_t ldb,
                double* c, int64_t ldc, double beta, const double* scale = nullptr);

// out[c,r] = scale * in[r,c]; rows of unit stride, ld_in and ld_out elements apart.
void transpose(int64_t rows, int64_t columns, const float* in, int64_t ld_in, float* out, int64_t ld_out,
               float scale = 1);
void transpose(int64_t rows, int64_t columns, const double* in, int64_t ld_in, double* out, int64_t ld_out,
               double scale = 1);

}  // namespace transxssm::cpu
