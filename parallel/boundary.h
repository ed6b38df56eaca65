// The conjugate pairs at which tensor parallelism attaches to a layer (Shoeybi et al., arXiv 1909.08053): a
// replicated tensor enters the sharded region and a partial sum leaves it.
#pragma once

#include "parallel/communicator.h"

namespace transxssm {

// Where the tokens of the residual stream lie. split_over_tp is reserved (Korthikanti et al., arXiv
// 2205.05198): enter becomes all-gather / reduce-scatter, leave reduce-scatter / all-gather.
enum class SequencePlacement { replicated, split_over_tp };

class Boundary {
 public:
  explicit Boundary(Communicator& tp, SequencePlacement placement = SequencePlacement::replicated)
      : tp_(&tp) {
    if (placement != SequencePlacement::replicated) {
      throw UsageError("The sequence cannot be split over tp yet: leave the residual stream replicated.");
    }
  }

  // x [B, T, D], the same on every rank, enters: nothing to do forward; the partial gradients of the ranks
  // are summed in place backward.
  void enter_forward(const Tensor&) const {}
  void enter_backward(const Tensor& dx) const { tp_->all_reduce(dx); }
  // Partial sums y [B, T, D] leave: summed in place forward; the gradient is already whole backward.
  void leave_forward(const Tensor& y) const { tp_->all_reduce(y); }
  void leave_backward(const Tensor&) const {}

  Communicator& tp() const { return *tp_; }

 private:
  Communicator* tp_;
};

}  // namespace transxssm
