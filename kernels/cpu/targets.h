// Instruction sets the SIMD code of this folder is compiled for: the plain baseline, AVX2, AVX-512 (on other
// architectures: all Highway knows). Include before hwy/foreach_target.h.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
