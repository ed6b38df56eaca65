// The device's part of a training step as graphs: what a step queues is recorded once and queued as a whole
// in the steps after, so that the host need not keep pace with thousands of short operations.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/stream.h"

namespace transxssm {

class StepGraphs {
 public:
  // What may differ from step to step in the operations that are queued (not in the numbers they read).
  using Variant = std::vector<bool>;

  // On a stream of a device, which must outlive it.
  explicit StepGraphs(Stream& stream) : stream_(stream) {}

  // Does `work`, which queues the same operations on the same memory each time it is called for a variant.
  // The first time for a variant it is called plainly: memory grows, and libraries choose their algorithms.
  // The second time it is recorded. So it is again where scratch memory has grown since, and may have moved.
  // Where a device cannot record it, a warning says so and it is called plainly from then on.
  void run(const Variant& variant, const std::function<void()>& work);

  int64_t num_recorded() const { return recorded_; }
  int64_t num_launched() const { return launched_; }

 private:
  // Variants that are remembered; one seldom met is forgotten before it is met again, and runs plainly.
  static constexpr size_t kMaxVariants = 8;
  struct Entry {
    Variant variant;
    int64_t scratch_bytes = -1;          // of the stream when it last ran plainly
    std::unique_ptr<DeviceGraph> graph;  // null: not recorded yet
  };
  Entry& entry_of(const Variant& variant);

  Stream& stream_;
  std::vector<Entry> entries_;  // the last used first
  bool can_record_ = true;
  int64_t recorded_ = 0, launched_ = 0;
};

}  // namespace transxssm
