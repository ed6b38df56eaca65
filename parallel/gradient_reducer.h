// Sums gradients over data parallel ranks in buckets, and those of replicated parameters over the tensor
// parallel ranks that hold copies. Always sums, never averages: the loss is scaled once, by the step's number
// of targets.
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
  // before the sum over dp. All sharers must add their ranges in one order.
  void add_shared(const FlatRange& range, Communicator& sharers);

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  const FlatRange& bucket(int i) const { return buckets_[static_cast<size_t>(i)]; }

  void reduce_shared();     // over the copies
  void reduce(int bucket);  // over dp
  void reduce_all();        // both, buckets in order

 private:
  struct Shared {
    FlatRange range;
    Communicator* sharers;
  };
  Communicator& dp_;
  Tensor gradient_;
  std::vector<FlatRange> buckets_;
  std::vector<Shared> shared_;
};

}  // namespace transxssm
