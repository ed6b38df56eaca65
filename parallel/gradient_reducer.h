// Sums gradients over data parallel ranks in buckets, and those of replicated parameters over the tensor
// parallel ranks that hold copies. Always sums, never averages: the loss is scaled once, by the step's number
// of targets. On a device a bucket's sum runs beside the rest of the backward pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace transxssm {

// Elements [begin, begin + count) of a flat tensor.
struct FlatRange {
  int64_t begin = 0;
  int64_t count = 0;
  bool operator==(const FlatRange&) const = default;
};

// max(40 M, 1 M x dp) elements.
int64_t default_bucket_elements(int dp);

// Whole parameters (given in ascending order of their place, as the forward pass meets them), collected from
// the last to the first, as the backward pass completes them; a bucket ends before it would exceed
// `bucket_elements`, so a larger parameter is a bucket of its own. Gaps between parameters of one bucket are
// part of it.
std::vector<FlatRange> make_buckets(std::span<const FlatRange> parameters, int64_t bucket_elements);

class GradientReducer {
 public:
  // gradient [elements] f32 or f64, contiguous. The communicator and the memory must outlive the reducer.
  GradientReducer(Communicator& dp, const Tensor& gradient, std::vector<FlatRange> buckets);

  // These elements belong to a parameter with copies on the ranks of `sharers`: summed over them once a step,
  // before the sum over dp. Sharers' ranges lie in one order, and in one step of the backward pass become
  // complete together; their buckets may differ.
  void add_shared(const FlatRange& range, Communicator& sharers);

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  const FlatRange& bucket(int i) const { return buckets_[static_cast<size_t>(i)]; }

  // In the backward pass of a step's last microbatch: this rank's gradients from element `first` on are what
  // they will be. `first` falls, in the same steps on all ranks of dp. Sums them over their copies and starts
  // the sums over dp of the buckets that are whole.
  void complete(int64_t first);
  // All are: starts the other sums and waits for every one. Ends the step.
  void finish();
  // Buckets of this step whose sums over dp have been started.
  int num_started() const { return static_cast<int>(started_.size()); }

 private:
  struct Shared {
    FlatRange range;
    Communicator* sharers;
  };
  Communicator& dp_;
  Tensor gradient_;
  std::vector<FlatRange> buckets_;
  std::vector<Shared> shared_;    // from the last to the first
  size_t shares_summed_ = 0;      // in this step
  std::vector<Request> started_;  // of the first buckets
};

}  // namespace transxssm
