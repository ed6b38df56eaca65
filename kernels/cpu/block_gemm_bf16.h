// Block products of bf16 operands with f32 accumulation, by the processor's dot products of bf16 pairs
// (AVX512_BF16). Such an instruction multiplies two neighbours along the depth k, so operands come in pairs:
//   rows     [r, c]         as the matrix lies: pairs along c
//   pairs    [r/2, c, 2]    rows 2i and 2i + 1 interleaved: pairs along r, a missing last row is zero
//   columns  [c/2, r, 2]    the transpose of `rows` with pairs kept: pairs along c
// A left operand is `rows` of itself or `pairs` of its transpose, a right operand [k,n] `pairs` of itself or
// `columns` of its transpose. Everything here asks for
// cpu_has_bf16() (runtime/cpu_features.h) and exists on x86-64 only.
#pragma once

#include "kernels/cpu/block_gemm.h"
#include "runtime/dtype.h"

namespace transxssm::cpu {

// c[m,n] = beta c + diag(scale) a[m,k] b[k,n], as block_gemm of f32. The pair of elements (m, 2i) and (m, 2i
// + 1) of a is at a.data + m a.row + i a.column; b is [k/2, n, 2] with ldb pairs from row to row. With an odd
// k both end with a zero.
void block_gemm(int64_t m, int64_t n, int64_t k, StridedMatrix<BFloat16> a, const BFloat16* b, int64_t ldb,
                float* c, int64_t ldc, float beta, const float* scale = nullptr);

// out = in, rounded to nearest even (subnormals to zero); with an odd number of columns one zero behind them.
void pack_rows(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out, int64_t ld_out);

// out[i,j] = (in[2i,j], in[2i+1,j]), with `weights` row r of `in` times weights[r]; ld_out in pairs.
void pack_pairs(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out, int64_t ld_out,
                const float* weights = nullptr);
void pack_pairs(int64_t rows, int64_t columns, const BFloat16* in, int64_t ld_in, BFloat16* out,
                int64_t ld_out);

// out[i,j] = (in[j,2i], in[j,2i+1]); ld_out in pairs; columns a multiple of 8.
void pack_columns(int64_t rows, int64_t columns, const float* in, int64_t ld_in, BFloat16* out,
                  int64_t ld_out);
void pack_columns(int64_t rows, int64_t columns, const BFloat16* in, int64_t ld_in, BFloat16* out,
                  int64_t ld_out);

}  // namespace transxssm::cpu
