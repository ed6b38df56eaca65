// State-space duality scan on the CPU: see kernels/ssd_scan.h for the contract. f64, f32 and bf16 (products
// of bf16 operands where the processor has them, else f32).
#pragma once

#include "kernels/ssd_scan.h"

namespace transxssm::cpu {

void run(Stream& stream, const SsdForward& args);
void run(Stream& stream, const SsdBackward& args);

}  // namespace transxssm::cpu
