// What an operation costs at the least: the bytes that must cross memory once, and the arithmetic that
// model.md's formula credits. Benchmarks compare times with these floors.
#pragma once

#include "kernels/operations.h"

namespace transxssm {

struct OperationCost {
  double bytes = 0;
  double flops =
      0;  // of matrix products and of what enters and leaves states; elementwise work is not counted
};

OperationCost cost(const Gemm& args);
OperationCost cost(const Copy& args);
OperationCost cost(const RmsNormForward& args);
OperationCost cost(const RmsNormBackward& args);
OperationCost cost(const ResidualForward& args);
OperationCost cost(const ResidualBackward& args);
OperationCost cost(const BiasForward& args);
OperationCost cost(const BiasBackward& args);
OperationCost cost(const Rotary& args);
OperationCost cost(const SsdForward& args);
OperationCost cost(const SsdBackward& args);
OperationCost cost(const AttentionForward& args);
OperationCost cost(const AttentionBackward& args);
OperationCost cost(const SwigluForward& args);
OperationCost cost(const SwigluBackward& args);
OperationCost cost(const Conv1dForward& args);
OperationCost cost(const Conv1dBackward& args);
OperationCost cost(const GatedNormSquares& args);
OperationCost cost(const GatedNormForward& args);
OperationCost cost(const GatedNormDots& args);
OperationCost cost(const GatedNormBackward& args);
OperationCost cost(const EmbeddingForward& args);
OperationCost cost(const EmbeddingBackward& args);
OperationCost cost(const CrossEntropyStatistics& args);
OperationCost cost(const CrossEntropyCombine& args);
OperationCost cost(const CrossEntropyLoss& args);
OperationCost cost(const CrossEntropyBackward& args);
OperationCost cost(const AdamW& args);

}  // namespace transxssm
