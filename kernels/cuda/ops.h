// The operations on NVIDIA GPUs: each is checked like the CPU's, queued on the stream and not waited for, but
// for the reductions to a number. f32 and bf16 activations; the rest as the headers of kernels/ say.
#pragma once

#include "kernels/operations.h"

namespace transxssm::cuda {

void run(Stream& stream, const Gemm& args);
void run(Stream& stream, const Copy& args);
void run(Stream& stream, const RmsNormForward& args);
void run(Stream& stream, const RmsNormBackward& args);
void run(Stream& stream, const ResidualForward& args);
void run(Stream& stream, const ResidualBackward& args);
void run(Stream& stream, const BiasForward& args);
void run(Stream& stream, const BiasBackward& args);
void run(Stream& stream, const Rotary& args);
void run(Stream& stream, const SsdForward& args);
void run(Stream& stream, const SsdBackward& args);
void run(Stream& stream, const AttentionForward& args);
void run(Stream& stream, const AttentionBackward& args);
void run(Stream& stream, const SwigluForward& args);
void run(Stream& stream, const SwigluBackward& args);
void run(Stream& stream, const Conv1dForward& args);
void run(Stream& stream, const Conv1dBackward& args);
void run(Stream& stream, const GatedNormSquares& args);
void run(Stream& stream, const GatedNormForward& args);
void run(Stream& stream, const GatedNormDots& args);
void run(Stream& stream, const GatedNormBackward& args);
void run(Stream& stream, const EmbeddingForward& args);
void run(Stream& stream, const EmbeddingBackward& args);
void run(Stream& stream, const CrossEntropyStatistics& args);
void run(Stream& stream, const CrossEntropyCombine& args);
void run(Stream& stream, const CrossEntropyLoss& args);
void run(Stream& stream, const CrossEntropyBackward& args);
void run(Stream& stream, const AdamW& args);
double sum_of_squares(Stream& stream, std::span<const Tensor> tensors);
int64_t count_not_finite(Stream& stream, const Tensor& x);

}  // namespace transxssm::cuda
