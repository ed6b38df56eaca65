// The only place that asks on which device an operation runs.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/ssd_scan.h"

namespace transxssm {

namespace {

void require_cpu(const Stream& stream) {
  if (stream.device().kind != DeviceKind::cpu)
    throw DeviceError("this build has no operations for CUDA device {}: choose the CPU",
                      stream.device().index);
}

template <class Args>
void run_on_device(Stream& stream, const Args& args) {
  require_cpu(stream);
  cpu::run(stream, args);
}

}  // namespace

void run(Stream& stream, const Gemm& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const RmsNormForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const RmsNormBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const ResidualForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const ResidualBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const Rotary& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const SsdForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const SsdBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const AttentionForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const AttentionBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const SwigluForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const SwigluBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const Conv1dForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const Conv1dBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const GatedNormSquares& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const GatedNormForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const GatedNormDots& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const GatedNormBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const EmbeddingForward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const EmbeddingBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const CrossEntropyStatistics& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const CrossEntropyBackward& args) {
  run_on_device(stream, args);
}
void run(Stream& stream, const AdamW& args) {
  run_on_device(stream, args);
}

double sum_of_squares(Stream& stream, const Tensor& x) {
  require_cpu(stream);
  return cpu::sum_of_squares(stream, x);
}

int64_t count_not_finite(Stream& stream, const Tensor& x) {
  require_cpu(stream);
  return cpu::count_not_finite(stream, x);
}

}  // namespace transxssm
