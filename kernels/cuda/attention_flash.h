// Our own attention on the GPU: blocks with an online softmax, bf16 operands on the tensor cores, fp32 sums.
// Everything that kernels/attention.h allows (documents, query offsets, any numbers of tokens), bf16, P in
// {16, 32, 64, 128}. The same bits on every run: every sum has one owner and one order.
#pragma once

#include "kernels/attention.h"

namespace transxssm::cuda {

void run_flash(Stream& stream, const AttentionForward& args);
// Two passes instead of one with atomics: dk and dv by blocks of keys, then dq by blocks of queries; each
// forms the scores again, so that 7 products are done where 5 would do. Scratch: 8 bytes a query and head.
void run_flash(Stream& stream, const AttentionBackward& args);

// InternalError unless the tensors have the shapes, dtypes and alignment that attention on the GPU takes.
void check_attention(const AttentionForward& args);
void check_attention(const AttentionBackward& args);

}  // namespace transxssm::cuda
