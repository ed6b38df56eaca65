// Every operation a device has, in one interface: a backend that lacks one does not compile.
// kernels/dispatch.cc sends each call to the CPU's or to the registered one.
#pragma once

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/bias.h"
#include "kernels/conv1d.h"
#include "kernels/copy.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gated_norm.h"
#include "kernels/gemm.h"
#include "kernels/reduce.h"
#include "kernels/residual.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/ssd_scan.h"
#include "kernels/swiglu.h"

namespace transxssm {

class Operations {
 public:
  virtual ~Operations() = default;
  virtual void run(Stream& stream, const Gemm& args) = 0;
  virtual void run(Stream& stream, const Copy& args) = 0;
  virtual void run(Stream& stream, const RmsNormForward& args) = 0;
  virtual void run(Stream& stream, const RmsNormBackward& args) = 0;
  virtual void run(Stream& stream, const ResidualForward& args) = 0;
  virtual void run(Stream& stream, const ResidualBackward& args) = 0;
  virtual void run(Stream& stream, const BiasForward& args) = 0;
  virtual void run(Stream& stream, const BiasBackward& args) = 0;
  virtual void run(Stream& stream, const Rotary& args) = 0;
  virtual void run(Stream& stream, const SsdForward& args) = 0;
  virtual void run(Stream& stream, const SsdBackward& args) = 0;
  virtual void run(Stream& stream, const AttentionForward& args) = 0;
  virtual void run(Stream& stream, const AttentionBackward& args) = 0;
  virtual void run(Stream& stream, const SwigluForward& args) = 0;
  virtual void run(Stream& stream, const SwigluBackward& args) = 0;
  virtual void run(Stream& stream, const Conv1dForward& args) = 0;
  virtual void run(Stream& stream, const Conv1dBackward& args) = 0;
  virtual void run(Stream& stream, const GatedNormSquares& args) = 0;
  virtual void run(Stream& stream, const GatedNormForward& args) = 0;
  virtual void run(Stream& stream, const GatedNormDots& args) = 0;
  virtual void run(Stream& stream, const GatedNormBackward& args) = 0;
  virtual void run(Stream& stream, const EmbeddingForward& args) = 0;
  virtual void run(Stream& stream, const EmbeddingBackward& args) = 0;
  virtual void run(Stream& stream, const CrossEntropyStatistics& args) = 0;
  virtual void run(Stream& stream, const CrossEntropyCombine& args) = 0;
  virtual void run(Stream& stream, const CrossEntropyLoss& args) = 0;
  virtual void run(Stream& stream, const CrossEntropyBackward& args) = 0;
  virtual void run(Stream& stream, const AdamW& args) = 0;
  virtual double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) = 0;
  virtual int64_t count_not_finite(Stream& stream, const Tensor& x) = 0;
};

// The backend for every device but the CPU registers itself once, at the program's start. Null takes it back.
void use_device_operations(Operations* operations);

}  // namespace transxssm
