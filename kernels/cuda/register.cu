#include "kernels/cuda/register.h"

#include "kernels/cuda/ops.h"
#include "kernels/operations.h"

namespace transxssm {

namespace {

class CudaOperations final : public Operations {
 public:
  void run(Stream& stream, const Gemm& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const Copy& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const RmsNormForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const RmsNormBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const ResidualForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const ResidualBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const BiasForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const BiasBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const Rotary& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const SsdForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const SsdBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const AttentionForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const AttentionBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const SwigluForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const SwigluBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const Conv1dForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const Conv1dBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const GatedNormSquares& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const GatedNormForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const GatedNormDots& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const GatedNormBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const EmbeddingForward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const EmbeddingBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const CrossEntropyStatistics& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const CrossEntropyCombine& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const CrossEntropyLoss& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const CrossEntropyBackward& args) override { cuda::run(stream, args); }
  void run(Stream& stream, const AdamW& args) override { cuda::run(stream, args); }
  double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) override {
    return cuda::sum_of_squares(stream, tensors);
  }
  int64_t count_not_finite(Stream& stream, const Tensor& x) override {
    return cuda::count_not_finite(stream, x);
  }
};

}  // namespace

void register_cuda_operations() {
  static CudaOperations operations;
  use_device_operations(&operations);
}

}  // namespace transxssm
