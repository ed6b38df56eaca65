// One microbatch of tokens as the model consumes it. Everything that depends on neighbours (targets,
// positions, documents) is fixed here, by the data layer, so that rows can be sliced later.
#pragma once

#include "runtime/arena.h"
#include "runtime/tensor.h"

namespace transxssm {

struct Batch {
  Tensor input;   // [B,T] i32 token ids
  Tensor target;  // [B,T] i32 the token after each input
  Tensor
      position;  // [B,T] i32 inside the document: 0 at each document start (0..T-1 where packing is ignored)
  Tensor document;  // [B,T] i32 not decreasing in a row: attention, state and positions stay inside one
  Tensor valid;     // [B,T] u8 1 where the target counts in the loss

  static Batch carve(Carver& carver, int64_t rows, int64_t tokens);
  int64_t rows() const { return input.size(0); }
  int64_t tokens() const { return input.size(1); }  // T
  Batch row_range(int64_t begin, int64_t count) const;
};

}  // namespace transxssm
