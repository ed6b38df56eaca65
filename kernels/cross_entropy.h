// Softmax cross-entropy over a slice of the vocabulary (Megatron-LM's vocabulary-parallel loss), in steps
// between which the caller gathers the statistics of all slices:
//   per slice: max m_r, sum s_r of exp(logit - m_r), the target's logit if the target is here (else 0)
//   combined:  m = max m_r,  s = sum over r of s_r exp(m_r - m),  loss = log s + m - target logit
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct CrossEntropyStatistics {
  Tensor logits;        // [T,V_local] f32 or bf16
  Tensor targets;       // [T] i32, global ids
  Tensor max;           // [T] out
  Tensor sum;           // [T] out
  Tensor target_logit;  // [T] out, 0 where the target is another slice's
  int64_t first_id = 0;
};
void run(Stream& stream, const CrossEntropyStatistics& args);

// Statistics of the whole vocabulary from those of R slices.
struct CrossEntropyCombine {
  Tensor slices;    // [R,3,T] max, sum, target logit of each
  Tensor combined;  // [3,T] out
};
void run(Stream& stream, const CrossEntropyCombine& args);

// loss += sum over valid t of log(sum) + max - target_logit, in f64 and in token order over fixed blocks: the
// same bits for any number of threads.
struct CrossEntropyLoss {
  Tensor valid;         // [T] u8
  Tensor max;           // [T] combined
  Tensor sum;           // [T] combined
  Tensor target_logit;  // [T] combined
  Tensor loss;          // [1] f64 +=
};
void run(Stream& stream, const CrossEntropyLoss& args);

// logits become d_logits = loss_scale * valid * (softmax - onehot), in place.
struct CrossEntropyBackward {
  Tensor logits;      // [T,V_local] in and out
  Tensor targets;     // [T] i32
  Tensor valid;       // [T] u8
  Tensor max;         // [T] combined
  Tensor sum;         // [T] combined
  Tensor loss_scale;  // [1] f64: read where and when the operation runs, so that recorded work stays right
  int64_t first_id = 0;
};
void run(Stream& stream, const CrossEntropyBackward& args);

}  // namespace transxssm
