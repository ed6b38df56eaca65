// Rotary position embedding, half-split (Su et al. 2021): element j of a head is paired with j + d/2.
// One routine, in place; the backward is the same call with the other direction.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

enum class RotaryDirection { forward, backward };

struct Rotary {
  Tensor x;         // [T,H,d] in place, unit stride in d
  Tensor cos;       // [positions, d/2] f32 (f64 with f64 x); a scaling's factor on q,k is multiplied in
  Tensor sin;       // [positions, d/2]
  Tensor position;  // [T] i32: rows of the tables
  Tensor scale{};   // [T] f32/f64 or empty: further factor of each token (log-n)
  RotaryDirection direction = RotaryDirection::forward;
};
void run(Stream& stream, const Rotary& args);

}  // namespace transxssm
