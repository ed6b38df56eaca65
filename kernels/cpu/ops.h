// The operations on CPU, as kernels/dispatch.cc calls them. The scan and attention have headers of their own.
#pragma once

#include "kernels/operations.h"

namespace transxssm::cpu {

void run(Stream& stream, const Gemm& args);
void run(Stream& stream, const RmsNormForward& args);
void run(Stream& stream, const RmsNormBackward& args);
void run(Stream& stream, const ResidualForward& args);
void run(Stream& stream, const ResidualBackward& args);
void run(Stream& stream, const BiasForward& args);
void run(Stream& stream, const BiasBackward& args);
void run(Stream& stream, const Rotary& args);
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
void run(Stream& stream, const Copy& args);
void run(Stream& stream, const AdamW& args);
double sum_of_squares(Stream& stream, std::span<const Tensor> tensors);
int64_t count_not_finite(Stream& stream, const Tensor& x);
int64_t packed_bytes(DType dtype, int64_t k, int64_t n);  // of a right operand

}  // namespace transxssm::cpu
