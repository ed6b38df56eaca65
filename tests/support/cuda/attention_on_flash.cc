// Attention on the emulated device: always our own kernels, since cuDNN needs a GPU.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/ops.h"

namespace transxssm::cuda {

void run(Stream& stream, const AttentionForward& args) {
  run_flash(stream, args);
}
void run(Stream& stream, const AttentionBackward& args) {
  run_flash(stream, args);
}

}  // namespace transxssm::cuda
