// cos and sin of the unified rotary position embedding: one spectrum theta_j = base^(-2j/d) for q,k (d = P)
// and C,B (d = N). Angles are formed in f64 and stored as f32.
#pragma once

#include "runtime/arena.h"

namespace transxssm {

struct RotaryTable {
  Tensor cos;  // [positions, width/2] f32
  Tensor sin;  // [positions, width/2] f32

  static RotaryTable carve(Carver& carver, int64_t positions, int64_t width);
  void fill(double base) const;
};

}  // namespace transxssm
