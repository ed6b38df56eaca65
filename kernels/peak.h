// What a machine can do at the most, measured: the floors that benchmarks compare with.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct MachinePeaks {
  double copy_bandwidth = 0;  // bytes read plus bytes written, a second, of a copy far larger than the caches
  double flops_f32 = 0;       // multiplications plus additions a second
  double flops_bf16 = 0;      // products of bf16 summed in f32
  double flops(DType dtype) const { return dtype == DType::bf16 ? flops_bf16 : flops_f32; }
};

// On the CPU: dependent-free multiply-adds in registers on every thread of the stream (bf16 where the
// processor has instructions for it, else as f32). On a device: the best of a few large matrix products.
// Takes about a second.
MachinePeaks measure_peaks(Stream& stream);

}  // namespace transxssm
