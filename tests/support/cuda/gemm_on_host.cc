// Matrix products of the emulated device, which stands in for cuBLASLt: the CPU's, in the order of the
// stream.
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/queue.h"
#include "runtime/cuda/device.h"
#include "tests/support/cuda/queue.h"

namespace transxssm::cuda {

void run(Stream& stream, const Gemm& args) {
  TRANSXSSM_CUDA_CHECK(emulated::enqueue(queue_of(stream), [args] {
    Stream host;
    cpu::run(host, args);
  }));
}

}  // namespace transxssm::cuda
