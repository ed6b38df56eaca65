// Softmax cross-entropy over a slice of the vocabulary (Megatron-LM's vocabulary-parallel loss), in two steps
// between which the caller combines the statistics of all slices:
//   per slice: max m_r, sum s_r of exp(logit - m_r), the target's logit if the target is here (else 0)
//   combined:  m = max m_r,  s = sum over r of s_r exp(m_r - m),  loss = log s + m - target logit
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct CrossEntropyStatistics {
  Tensor logits;        // [T,V_local]
  Tensor targets;       // [T] i32, global ids
  Tensor max;           // [T] out
  Tensor sum;           // [T] out
  Tensor target_logit;  // [T] out, 0 where the target is another slice's
  int64_t first_id = 0;
};
void run(Stream& stream, const CrossEntropyStatistics& args);

// loss[t] = valid[t] ? log(sum) + max - target_logit : 0
// logits become d_logits = loss_scale * valid * (softmax - onehot), in place.
struct CrossEntropyBackward {
  Tensor logits;   // [T,V_local] in and out
  Tensor targets;  // [T] i32
  Tensor valid;    // [T] u8
  Tensor max;      // [T] combined
  Tensor sum;      // [T] combined
  double loss_scale = 1;
  int64_t first_id = 0;
};
void run(Stream& stream, const CrossEntropyBackward& args);

}  // namespace transxssm
