// Products of bf16 matrices in the instructions that the CPU has for them.
#pragma once

#include "kernels/gemm.h"

namespace transxssm::cpu {

// True where the CPU multiplies bf16 (AVX512_BF16 or AMX; ONEDNN_MAX_CPU_ISA can forbid them).
bool has_bf16_products();

// A product with bf16 a and b, c bf16 or f32 (accumulated or not), none of its dims zero. What oneDNN
// prepares for the args' shapes and strides is kept for the calling thread. False, and nothing done, where
// oneDNN has no fast product for them.
bool product_bf16(Stream& stream, const Gemm& args);

}  // namespace transxssm::cpu
