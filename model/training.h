// The work of one pipeline stage in training and evaluation (parallel/pipeline.h calls it): microbatches pass
// through the network's layers; what the backward needs stays in the microbatch's slot.
#pragma once

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "model/network.h"
#include "model/token_rows.h"
#include "parallel/pipeline.h"

namespace transxssm {

// What a layer's forward leaves for its backward: everything, or only its input, from which the backward
// forms the rest again (one more forward of time, the memory of one layer instead of all).
enum class Recompute { keep, layer };

// Bytes of one stage's activations, known without allocating them.
struct ActivationBytes {
  int64_t slot = 0;     // kept by each microbatch from its forward to its weight gradients
  int64_t pending = 0;  // kept from input gradients to weight gradients, once
};

class TrainingWork : public StageWork {
 public:
  static ActivationBytes activation_bytes(const Network& network, int64_t rows, int64_t tokens,
                                          Recompute recompute);

  // Microbatches of `rows` x `tokens`; allocates num_slots slots (Pipeline::num_slots()).
  TrainingWork(Stream& stream, const Network& network, int64_t rows, int64_t tokens, int num_slots,
               Recompute recompute = Recompute::keep);

  // Before Pipeline::run, while nothing of the step before is under way: the microbatches, and 1 / number of
  // valid targets of the whole step.
  void begin_training(std::span<const TokenRows> microbatches, double loss_scale);
  // Before Pipeline::run_forward.
  void begin_evaluation(std::span<const TokenRows> microbatches);
  // Sum of the losses of this rank's valid targets since begin_training, in nats; zero but on the last stage.
  // Waits for all that was queued.
  double loss_sum() const;
  // Since begin_evaluation: the sum of every row, [microbatches * rows]; likewise.
  const std::vector<double>& row_losses();

  // Called in each forward with the output [BT,D] of every layer: the microbatch, and the layer counted from
  // the first of the whole network. Empty: nobody looks.
  using LayerObserver = std::function<void(int microbatch, int layer, const Tensor& output)>;
  void observe_layers(LayerObserver observer) { observer_ = std::move(observer); }
  bool is_observed() const { return observer_ != nullptr; }

  // What becomes of a step's gradients.
  struct GradientSums {
    // Called in the backward of the last microbatch, layer by layer: the gradients from element `first` of
    // the flat array on are complete. Matrices lie there in the order of the forward pass, after all vectors;
    // the last call, after the last layer's, says 0.
    std::function<void(int64_t first)> complete;
    // Called at the schedule's place for it, after the last weight gradient.
    std::function<void()> finish;
  };
  // Without it gradients stay this rank's own.
  void sum_gradients(GradientSums sums) { sums_ = std::move(sums); }

  void forward(int microbatch, int slot, const Tensor& input, const Tensor& output) override;
  void backward_input(int microbatch, int slot, const Tensor& d_output, const Tensor& d_input) override;
  void backward_weight(int microbatch, int slot) override;
  void reduce_gradients() override {
    if (sums_.finish) sums_.finish();
  }

 private:
  struct Slot {
    std::vector<Tensor> x;  // input of each layer, then of the head; the first of a later stage is received
    std::vector<Carver> saved;  // of each layer (unless recomputed)
    Carver head;
  };
  struct Pending {
    std::vector<Tensor> dy;  // gradient of x of the same index; the last of an earlier stage is received
    std::vector<Carver> layers;
    Carver recomputed;  // what one layer saves
    Tensor y;           // its output, formed again and not used
  };
  static Slot carve_slot(const Network& network, Carver& carver, int64_t rows, int64_t tokens,
                         Recompute recompute);
  static Pending carve_pending(const Network& network, Carver& carver, int64_t rows, int64_t tokens,
                               Recompute recompute);
  Carver saved(const Slot& slot, size_t layer) const {
    return recompute_ == Recompute::keep ? slot.saved[layer] : pending_.recomputed;
  }
  TokenContext context(const TokenRows& rows) const;
  void begin(std::span<const TokenRows> microbatches);
  void layer_complete(int microbatch, size_t layer) const;

  Stream& stream_;
  const Network& network_;
  int64_t rows_, tokens_;
  Recompute recompute_;
  Arena arena_;
  std::vector<Slot> slots_;
  Pending pending_;
  std::span<const TokenRows> microbatches_;
  Arena host_loss_scale_;     // pinned
  Tensor loss_, loss_scale_;  // [1] f64
  Arena row_loss_arena_;      // made by the first evaluation
  Tensor row_losses_;         // [microbatches * rows] f64
  std::vector<double> host_row_losses_;
  int pending_microbatch_ = -1;  // whose input gradients are in pending_
  bool training_ = false;
  LayerObserver observer_;
  GradientSums sums_;
};

}  // namespace transxssm
