// Causal grouped-query attention on the CPU: see kernels/attention.h for the contract. f64, f32 and bf16
// (products of bf16 operands where the processor has them, else f32).
#pragma once

#include "kernels/attention.h"

namespace transxssm::cpu {

void run(Stream& stream, const AttentionForward& args);
void run(Stream& stream, const AttentionBackward& args);

}  // namespace transxssm::cpu
