// Embedding lookup over a slice of the vocabulary: this rank holds ids [first_id, first_id + V_local).
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct EmbeddingForward {
  Tensor ids;     // [T] i32
  Tensor weight;  // [V_local,D]
  Tensor y;       // [T,D] out; zero rows for ids of other ranks
  int64_t first_id = 0;
};
void run(Stream& stream, const EmbeddingForward& args);

// d_weight rows are summed in token order, whatever the number of threads.
struct EmbeddingBackward {
  Tensor ids;       // [T] i32
  Tensor dy;        // [T,D]
  Tensor d_weight;  // [V_local,D] +=
  int64_t first_id = 0;
};
void run(Stream& stream, const EmbeddingBackward& args);

}  // namespace transxssm
