// What happens between the last backward and the next forward: gradients are summed over the ranks that share
// them, their global norm is formed and clipped, and AdamW updates this rank's parameters.
#pragma once

#include "model/parameter.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"

namespace transxssm {

struct OptimizerOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;   // of matrices
  double clip_norm = 1;         // 0: no clipping
  int64_t bucket_elements = 0;  // of a gradient reduction; 0: the default for this dp
};

class Optimizer {
 public:
  // The store is allocated with its optimizer state; all must outlive this.
  Optimizer(Stream& stream, ParameterStore& store, Mesh& mesh, const OptimizerOptions& options);

  // Gradients from this element of the flat array on are complete on this rank (GradientReducer::complete).
  void gradients_complete(int64_t first) { reducer_.complete(first); }
  // All are: finishes their sums over tp copies and dp, then sums the two ends of a tied embedding.
  // Collective.
  void reduce_gradients();
  // Norm of all logical parameters' gradients, each once. Collective; the same bits on every rank.
  double gradient_norm();
  // One AdamW step, clipped; `update` counts those of the run, this one among them.
  void update(double learning_rate, double gradient_norm, int64_t update);
  // The first parameter of this rank whose gradient is not finite; empty where all are.
  std::string first_not_finite() const;

 private:
  Stream& stream_;
  ParameterStore& store_;
  Mesh& mesh_;
  OptimizerOptions options_;
  std::vector<Tensor> owned_;  // gradients that this rank counts in the norm, neighbours as one
  GradientReducer reducer_;
};

enum class LearningRateKind { cosine, linear, constant };

// Linear warm-up to `peak`, then a decay to `min_fraction` of it at `end_tokens`. Its clock is the tokens
// that the run has consumed, those of the update's own step among them: a change of the step's size moves
// nothing.
struct LearningRateSchedule {
  LearningRateKind kind = LearningRateKind::cosine;
  double peak = 0;
  double min_fraction = 0.1;
  int64_t warmup_tokens = 0;
  int64_t end_tokens = 0;
  int64_t unit =
      1;  // tokens of a step when the warm-up was settled; it is divided in these, which fixes the bits
  double at(int64_t tokens) const;
  bool operator==(const LearningRateSchedule&) const = default;
};

}  // namespace transxssm
