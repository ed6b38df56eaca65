#include "tests/kernels/instruction_sets.h"

#include <hwy/targets.h>

#include <cstdint>

namespace transxssm {

void for_instruction_sets(const std::function<void()>& fn) {
  int64_t disabled = 0;
  for (const int64_t target : {int64_t{0}, int64_t{HWY_AVX3_DL}, int64_t{HWY_AVX3}, int64_t{HWY_AVX2}}) {
    hwy::DisableTargets(disabled |= target);
    fn();
  }
  hwy::DisableTargets(0);
}

}  // namespace transxssm
