// What this processor can do, beyond what every x86-64 one can.
#pragma once

#include <string>

namespace transxssm {

// True where products of bf16 have instructions of their own (AVX512_BF16) and ONEDNN_MAX_CPU_ISA, the one
// variable that caps what kernels use, does not forbid them.
bool cpu_has_bf16();
// The widest vectors kernels may use, for a log: "AVX512_BF16", "AVX512", "AVX2", "baseline".
std::string cpu_level();

}  // namespace transxssm
