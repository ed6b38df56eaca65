// State-space duality scan on the CPU: see kernels/ssd_scan.h for the contract. f32 and f64.
#pragma once

#include "kernels/ssd_scan.h"

namespace transxssm::cpu {

void run(Stream& stream, const SsdForward& args);
void run(Stream& stream, const SsdBackward& args);

}  // namespace transxssm::cpu
