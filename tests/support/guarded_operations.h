// The CPU's operations on the queue of a GuardedDevice.
#pragma once

#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/ssd_scan.h"
#include "kernels/operations.h"
#include "tests/support/guarded_device.h"

namespace transxssm {

class GuardedOperations final : public Operations {
 public:
  explicit GuardedOperations(GuardedDevice& device) : device_(device) { use_device_operations(this); }
  ~GuardedOperations() override { use_device_operations(nullptr); }

  void run(Stream& stream, const Gemm& args) override { add(stream, args); }
  void run(Stream& stream, const Copy& args) override { add(stream, args); }
  void run(Stream& stream, const RmsNormForward& args) override { add(stream, args); }
  void run(Stream& stream, const RmsNormBackward& args) override { add(stream, args); }
  void run(Stream& stream, const ResidualForward& args) override { add(stream, args); }
  void run(Stream& stream, const ResidualBackward& args) override { add(stream, args); }
  void run(Stream& stream, const Rotary& args) override { add(stream, args); }
  void run(Stream& stream, const BiasForward& args) override { add(stream, args); }
  void run(Stream& stream, const BiasBackward& args) override { add(stream, args); }
  void run(Stream& stream, const SsdForward& args) override { add(stream, args); }
  void run(Stream& stream, const SsdBackward& args) override { add(stream, args); }
  void run(Stream& stream, const AttentionForward& args) override { add(stream, args); }
  void run(Stream& stream, const AttentionBackward& args) override { add(stream, args); }
  void run(Stream& stream, const SwigluForward& args) override { add(stream, args); }
  void run(Stream& stream, const SwigluBackward& args) override { add(stream, args); }
  void run(Stream& stream, const Conv1dForward& args) override { add(stream, args); }
  void run(Stream& stream, const Conv1dBackward& args) override { add(stream, args); }
  void run(Stream& stream, const GatedNormSquares& args) override { add(stream, args); }
  void run(Stream& stream, const GatedNormForward& args) override { add(stream, args); }
  void run(Stream& stream, const GatedNormDots& args) override { add(stream, args); }
  void run(Stream& stream, const GatedNormBackward& args) override { add(stream, args); }
  void run(Stream& stream, const EmbeddingForward& args) override { add(stream, args); }
  void run(Stream& stream, const EmbeddingBackward& args) override { add(stream, args); }
  void run(Stream& stream, const CrossEntropyStatistics& args) override { add(stream, args); }
  void run(Stream& stream, const CrossEntropyCombine& args) override { add(stream, args); }
  void run(Stream& stream, const CrossEntropyLoss& args) override { add(stream, args); }
  void run(Stream& stream, const CrossEntropyBackward& args) override { add(stream, args); }
  void run(Stream& stream, const AdamW& args) override { add(stream, args); }

  double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) override {
    return read<double>(stream, [&](Stream& host) { return cpu::sum_of_squares(host, tensors); });
  }
  int64_t count_not_finite(Stream& stream, const Tensor& x) override {
    return read<int64_t>(stream, [&](Stream& host) { return cpu::count_not_finite(host, x); });
  }

 private:
  template <class Args>
  void add(Stream& stream, const Args& args) {
    submit(*stream.queue(), [args] {
      Stream host;
      cpu::run(host, args);
    });
  }
  template <class Result>
  Result read(Stream& stream, const std::function<Result(Stream&)>& fn) {
    stream.synchronize();
    Result result{};
    device_.run_open([&] {
      Stream host;
      result = fn(host);
    });
    return result;
  }

  GuardedDevice& device_;
};

}  // namespace transxssm
