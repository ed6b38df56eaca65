// Operations that have no kernel yet: the first call says so. A kernel's own definition takes the place of
// these.
#include "kernels/cuda/ops.h"
#include "runtime/error.h"

namespace transxssm::cuda {

#define TRANSXSSM_MISSING(Args)                          \
  __attribute__((weak)) void run(Stream&, const Args&) { \
    throw InternalError(#Args " has no kernel");         \
  }
TRANSXSSM_MISSING(Copy)
TRANSXSSM_MISSING(RmsNormForward)
TRANSXSSM_MISSING(RmsNormBackward)
TRANSXSSM_MISSING(ResidualForward)
TRANSXSSM_MISSING(ResidualBackward)
TRANSXSSM_MISSING(Rotary)
TRANSXSSM_MISSING(SsdForward)
TRANSXSSM_MISSING(SsdBackward)
TRANSXSSM_MISSING(AttentionForward)
TRANSXSSM_MISSING(AttentionBackward)
TRANSXSSM_MISSING(SwigluForward)
TRANSXSSM_MISSING(SwigluBackward)
TRANSXSSM_MISSING(Conv1dForward)
TRANSXSSM_MISSING(Conv1dBackward)
TRANSXSSM_MISSING(GatedNormSquares)
TRANSXSSM_MISSING(GatedNormForward)
TRANSXSSM_MISSING(GatedNormDots)
TRANSXSSM_MISSING(GatedNormBackward)
TRANSXSSM_MISSING(EmbeddingForward)
TRANSXSSM_MISSING(EmbeddingBackward)
TRANSXSSM_MISSING(CrossEntropyStatistics)
TRANSXSSM_MISSING(CrossEntropyCombine)
TRANSXSSM_MISSING(CrossEntropyLoss)
TRANSXSSM_MISSING(CrossEntropyBackward)
TRANSXSSM_MISSING(AdamW)
__attribute__((weak)) double sum_of_squares(Stream&, std::span<const Tensor>) {
  throw InternalError("sum_of_squares has no kernel");
}
__attribute__((weak)) int64_t count_not_finite(Stream&, const Tensor&) {
  throw InternalError("count_not_finite has no kernel");
}

}  // namespace transxssm::cuda
