// In which types, and how strictly, a network computes. Master weights, AdamW's moments, gradients,
// statistics, states handed on and everything about dt are f32 in any case.
#pragma once

#include "runtime/dtype.h"

namespace transxssm {

struct Precision {
  DType activation = DType::f32;  // operands of matrix products, activations between operations: f32 or bf16
  DType residual = DType::f32;    // residual stream and pipeline messages: as activation, or f32

  bool deterministic = true;  // the same bits on every run, where a device has faster ways without

  static Precision f32() { return {}; }
  static Precision bf16() { return {.activation = DType::bf16, .residual = DType::bf16}; }
  bool operator==(const Precision&) const = default;
};

}  // namespace transxssm
