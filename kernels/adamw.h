// AdamW (Loshchilov & Hutter 2019) over one contiguous range, one pass over memory:
//   g = gradient * gradient_scale
//   m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
//   w = w - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay w)
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct AdamW {
  Tensor weight;      // [n] in place
  Tensor gradient;    // [n]
  Tensor exp_avg;     // [n] m, in place
  Tensor exp_avg_sq;  // [n] v, in place
  Tensor rounded{};   // [n] bf16 out: the new weights, to nearest even; or empty
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double gradient_scale = 1;  // clipping
  int64_t step = 1;           // from one
};
void run(Stream& stream, const AdamW& args);

}  // namespace transxssm
