// Large products in AVX-512, of f32 or of bf16 pairs: a register tile of 8 rows and 32 columns, operands in
// blocks that stay in a core's caches. What the right operand is laid out in, its panels, is formed once for
// a weight (PackedMatrix of kernels/gemm.h) or block by block. Sums over k run upwards in blocks that follow
// from k alone, so the bits are the same for any number of threads.
#pragma once

#include "kernels/gemm.h"

namespace transxssm::cpu {

// Whether there are such products of matrices in `dtype`: f32 with AVX-512, bf16 with AVX512_BF16; not bf16
// with AMX, whose tiles oneDNN knows. ONEDNN_MAX_CPU_ISA can forbid them.
bool has_panel_products(DType dtype);

// Bytes of the panels of a [k,n] matrix: for every 32 columns [k,32] elements, bf16 as [k/2,32,2], with zeros
// behind the last column and row.
int64_t panel_bytes(DType dtype, int64_t k, int64_t n);
// Forms the panels of op(args.b).
void pack_panels(Stream& stream, const Gemm& args, void* panels);
// The product, with a as it lies and op(b) in panels.
void product_of_panels(Stream& stream, const Gemm& args, const void* panels);
// The product for a transposed and b not, both as they lie: the gradient of a weight. c is f32.
void product_of_columns(Stream& stream, const Gemm& args);

}  // namespace transxssm::cpu
