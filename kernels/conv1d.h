// Causal depthwise convolution over time with SiLU (Mamba's short convolution):
//   y_t = silu(bias + sum over k < K of weight[k] x_{t-K+1+k})        K from 1 to 8
// Tokens of another document, and those before the row, count as zero (or as `initial_window`).
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct Conv1dForward {
  Tensor x;                    // [B,T,C], unit stride in C
  Tensor weight;               // [C,K]
  Tensor bias;                 // [C]
  Tensor start = {};           // [B,T] u8 or empty: the first token of a document
  Tensor initial_window = {};  // [B,K-1,C] the inputs before the row, oldest first; or empty: zeros
  Tensor y;                    // [B,T,C] out
  // [B,K-1,C] out, or empty; may be initial_window. What the row after this one is given: the row's last K-1
  // inputs, zero where they are not of its last document.
  Tensor final_window = {};
};
void run(Stream& stream, const Conv1dForward& args);

// For rows without an initial window. The sums before the SiLU are computed again.
struct Conv1dBackward {
  Tensor x;           // [B,T,C]
  Tensor weight;      // [C,K]
  Tensor bias;        // [C]
  Tensor start = {};  // [B,T] u8 or empty
  Tensor dy;          // [B,T,C]
  Tensor dx;          // [B,T,C] out; may be dy
  Tensor d_weight;    // [C,K] +=
  Tensor d_bias;      // [C] +=
};
void run(Stream& stream, const Conv1dBackward& args);

}  // namespace transxssm
