// Final norm, language-model head and loss, cut over the vocabulary. In training the forward already forms
// the gradients of the logits, in place, at most a thousand tokens at a time: all logits never exist at once.
#pragma once

#include "model/config.h"
#include "model/parameter.h"
#include "model/precision.h"
#include "model/shard.h"
#include "parallel/boundary.h"
#include "parallel/communicator.h"

namespace transxssm {

struct LossTargets {
  Tensor target;      // [BT] i32
  Tensor valid;       // [BT] u8
  Tensor loss;        // [1] f64 +=; [R]: of each of R equal parts of the tokens
  Tensor loss_scale;  // [1] f64: 1 / number of valid targets of the whole step
};

class Head {
 public:
  // `tied_weight` is the embedding's parameter where it lives on this stage, else -1: the head declares its
  // own
  // ("lm_head.weight", or a copy of the embedding where they are tied).
  Head(const ModelConfig& config, const Shard& shard, const Precision& precision, ParameterStore& store,
       const Boundary& boundary, Communicator& tp, int tied_weight);

  // Adds the losses of the valid targets, in nats, to targets.loss. x [BT,D].
  void loss(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved) const;
  // As loss(), with the weight gradients accumulated and the gradient of the normalised x left in `saved`.
  void loss_and_gradients(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved) const;
  void backward_input(Stream& stream, const Tensor& x, const Tensor& dx, Carver saved) const;
  // logits [n,V] of the rows x [n,D], on every rank of tp.
  void logits(Stream& stream, const Tensor& x, const Tensor& logits) const;

  int64_t saved_bytes(int64_t num_tokens) const;

 private:
  struct Saved {
    Tensor normed;  // [BT,D]; after loss_and_gradients: its gradient
    Tensor rstd;    // [BT]
  };
  Saved carve(Carver& saved, int64_t num_tokens) const;
  void forward(Stream& stream, const LossTargets& targets, const Tensor& x, Carver saved,
               bool gradients) const;
  void normalise(Stream& stream, const Tensor& x, const Tensor& y, const Tensor& rstd) const;
  // Logits [n,V_local] of this rank, rows apart so that each begins at a vector.
  Tensor take_logits(Carver& carver, int64_t n) const;
  // Statistics of the whole vocabulary from each rank's: [3,n] max, sum, target logit.
  void combine(Stream& stream, const Tensor& statistics) const;
  Linear output() const { return store_->linear(output_); }

  const ParameterStore* store_;
  Boundary boundary_;
  Communicator* tp_;
  DType dtype_;
  int64_t d_, vocab_size_, first_id_, local_vocab_;
  int64_t widest_vocab_;  // of any rank: chunks of tokens must be the same everywhere
  double eps_;
  int norm_ = 0, output_ = 0;
};

}  // namespace transxssm
