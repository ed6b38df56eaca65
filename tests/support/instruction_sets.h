// Runs code under the instruction sets that the kernels are compiled for and this CPU has.
#pragma once

#include <hwy/targets.h>

#include <cstdint>

namespace transxssm {

// Calls fn() with all instruction sets, then without the best, and so on.
template <class Fn>
void for_instruction_sets(Fn&& fn) {
  int64_t disabled = 0;
  for (int64_t target : {int64_t{0}, int64_t{HWY_AVX3_DL}, int64_t{HWY_AVX3}, int64_t{HWY_AVX2}}) {
    hwy::DisableTargets(disabled |= target);
    fn();
  }
  hwy::DisableTargets(0);
}

}  // namespace transxssm
