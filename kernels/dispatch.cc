// The only place that asks on which device an operation runs.
#include <fmt/format.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/ssd_scan.h"
#include "kernels/cost.h"
#include "kernels/operations.h"
#include "runtime/trace.h"

namespace transxssm {

namespace {

Operations* registered = nullptr;

Operations& device_operations(const Stream& stream) {
  if (registered == nullptr)
    throw DeviceError("this program was built without operations for {}: choose the device cpu",
                      stream.device().to_string());
  return *registered;
}

// A product by the names of BLAS: which factor is transposed, and M x N x K.
std::string shape_of(const Gemm& args) {
  return fmt::format("{}{} {} x {} x {}", args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N',
                     args.c.size(0), args.c.size(1), args.a.size(args.transpose_a ? 0 : 1));
}
template <class Args>
std::string shape_of(const Args&) {
  return {};
}

template <class Args>
void run_on_device(Stream& stream, const Args& args, const char* name) {
  Span span(Activity::compute, name, &stream);
  if (span.kept()) {
    const OperationCost floor = cost(args);
    span.set_cost(floor.bytes, floor.flops);
    span.set_shape(shape_of(args));
  }
  if (stream.device().is_cpu()) return cpu::run(stream, args);
  device_operations(stream).run(stream, args);
}

}  // namespace

int64_t packed_bytes(const Device& device, DType dtype, int64_t k, int64_t n) {
  return device.is_cpu() ? cpu::packed_bytes(dtype, k, n) : 0;
}

void use_device_operations(Operations* operations) {
  registered = operations;
}

void run(Stream& stream, const Gemm& args) {
  run_on_device(stream, args, "Gemm");
}
void run(Stream& stream, const Copy& args) {
  run_on_device(stream, args, "Copy");
}
void run(Stream& stream, const RmsNormForward& args) {
  run_on_device(stream, args, "RmsNormForward");
}
void run(Stream& stream, const RmsNormBackward& args) {
  run_on_device(stream, args, "RmsNormBackward");
}
void run(Stream& stream, const ResidualForward& args) {
  run_on_device(stream, args, "ResidualForward");
}
void run(Stream& stream, const ResidualBackward& args) {
  run_on_device(stream, args, "ResidualBackward");
}
void run(Stream& stream, const BiasForward& args) {
  run_on_device(stream, args, "BiasForward");
}
void run(Stream& stream, const BiasBackward& args) {
  run_on_device(stream, args, "BiasBackward");
}
void run(Stream& stream, const Rotary& args) {
  run_on_device(stream, args, "Rotary");
}
void run(Stream& stream, const SsdForward& args) {
  run_on_device(stream, args, "SsdForward");
}
void run(Stream& stream, const SsdBackward& args) {
  run_on_device(stream, args, "SsdBackward");
}
void run(Stream& stream, const AttentionForward& args) {
  run_on_device(stream, args, "AttentionForward");
}
void run(Stream& stream, const AttentionBackward& args) {
  run_on_device(stream, args, "AttentionBackward");
}
void run(Stream& stream, const SwigluForward& args) {
  run_on_device(stream, args, "SwigluForward");
}
void run(Stream& stream, const SwigluBackward& args) {
  run_on_device(stream, args, "SwigluBackward");
}
void run(Stream& stream, const Conv1dForward& args) {
  run_on_device(stream, args, "Conv1dForward");
}
void run(Stream& stream, const Conv1dBackward& args) {
  run_on_device(stream, args, "Conv1dBackward");
}
void run(Stream& stream, const GatedNormSquares& args) {
  run_on_device(stream, args, "GatedNormSquares");
}
void run(Stream& stream, const GatedNormForward& args) {
  run_on_device(stream, args, "GatedNormForward");
}
void run(Stream& stream, const GatedNormDots& args) {
  run_on_device(stream, args, "GatedNormDots");
}
void run(Stream& stream, const GatedNormBackward& args) {
  run_on_device(stream, args, "GatedNormBackward");
}
void run(Stream& stream, const EmbeddingForward& args) {
  run_on_device(stream, args, "EmbeddingForward");
}
void run(Stream& stream, const EmbeddingBackward& args) {
  run_on_device(stream, args, "EmbeddingBackward");
}
void run(Stream& stream, const CrossEntropyStatistics& args) {
  run_on_device(stream, args, "CrossEntropyStatistics");
}
void run(Stream& stream, const CrossEntropyCombine& args) {
  run_on_device(stream, args, "CrossEntropyCombine");
}
void run(Stream& stream, const CrossEntropyLoss& args) {
  run_on_device(stream, args, "CrossEntropyLoss");
}
void run(Stream& stream, const CrossEntropyBackward& args) {
  run_on_device(stream, args, "CrossEntropyBackward");
}
void run(Stream& stream, const AdamW& args) {
  run_on_device(stream, args, "AdamW");
}

double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) {
  const Span span(Activity::compute, "sum_of_squares", &stream);
  return stream.device().is_cpu() ? cpu::sum_of_squares(stream, tensors)
                                  : device_operations(stream).sum_of_squares(stream, tensors);
}

int64_t count_not_finite(Stream& stream, const Tensor& x) {
  const Span span(Activity::compute, "count_not_finite", &stream);
  return stream.device().is_cpu() ? cpu::count_not_finite(stream, x)
                                  : device_operations(stream).count_not_finite(stream, x);
}

}  // namespace transxssm
