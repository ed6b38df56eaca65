// Causal grouped-query attention on the CPU: see kernels/attention.h for the contract. f32 and f64.
#pragma once

#include "kernels/attention.h"

namespace transxssm::cpu {

void run(Stream& stream, const AttentionForward& args);
void run(Stream& stream, const AttentionBackward& args);

}  // namespace transxssm::cpu
