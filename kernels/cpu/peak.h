// The arithmetic peak of this processor's cores; kernels/peak.h.
#pragma once

#include "runtime/stream.h"

namespace transxssm::cpu {

// Multiply-adds in registers, on every thread of the stream at once: operations a second.
double measure_flops_f32(const Stream& stream);
double measure_flops_bf16(const Stream& stream);

}  // namespace transxssm::cpu
