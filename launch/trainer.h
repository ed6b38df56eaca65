// One rank's part of a training job: network, pipeline and optimizer on a mesh, and the step that ties them
// together. Knows nothing of files: launch/training_run.h feeds it rows, saves and logs.
#pragma once

#include <memory>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "launch/config.h"
#include "launch/run_length.h"
#include "launch/step_graphs.h"
#include "model/accounting.h"
#include "model/optimizer.h"
#include "model/training.h"
#include "parallel/mesh.h"
#include "parallel/pipeline.h"

namespace transxssm {

struct StepResult {
  double loss = 0;           // nats per valid target of the whole step
  double gradient_norm = 0;  // global, before clipping
  double learning_rate = 0;
  int64_t valid_targets = 0;
};

class Trainer {
 public:
  // Collective. Builds the mesh, allocates everything and initialises the weights from the seed.
  Trainer(const TrainConfig& config, Communicator& world, Stream& stream);

  // Rows of one step on this data-parallel coordinate, [num_microbatches * microbatch_size, T], in host
  // memory: to be filled between steps.
  Batch& batch() { return feed_.host(); }
  // First of batch()'s rows within the step's global batch.
  int64_t first_row() const;

  // One optimizer step over batch(). Collective. NumericsError, before any weight changed, where the loss or
  // a gradient is not finite.
  StepResult step();
  // Loss of the first microbatches of batch(), without gradients: a number of the replica's own, 0 too. In
  // nats, summed over the valid targets of each row; zero on ranks that do not know it. Collective over the
  // ranks of a replica.
  const std::vector<double>& evaluate(int64_t num_microbatches);
  bool knows_loss() const {
    return network_.head() != nullptr && mesh_.coordinate().tp == 0;
  }  // one a replica
  int64_t microbatch_rows() const { return config_.parallel().microbatch_size(); }

  // Of the steps to come, in place of the configuration's.
  void set_learning_rate(const LearningRateSchedule& schedule) { learning_rate_ = schedule; }

  // By all steps so far, those of earlier starts among them: where the data and the learning rate stand.
  const Consumed& consumed() const { return consumed_; }
  void set_consumed(const Consumed& consumed) { consumed_ = consumed; }
  int64_t steps_done() const { return consumed_.steps; }
  // After a load into checkpoint_tensors().
  void weights_were_loaded() { network_.parameters().refresh_operands(stream_); }
  // Weights and moments as boxes of logical tensors; of the copies in the job one is the owner.
  std::vector<CheckpointTensor> checkpoint_tensors() const;

  Mesh& mesh() { return mesh_; }
  Stream& stream() { return stream_; }
  const Network& network() const { return network_; }
  TrainingWork& work() { return *work_; }
  const Pipeline& pipeline() const { return pipeline_; }
  // Null where steps are not recorded.
  const StepGraphs* graphs() const { return graphs_.get(); }

 private:
  void upload_microbatches();
  void compute_gradients();
  int64_t count_valid_targets();
  std::string not_finite_gradients();

  TrainConfig config_;
  Stream& stream_;
  Mesh mesh_;
  std::vector<StageCut> cuts_;
  Network network_;
  Pipeline pipeline_;
  std::unique_ptr<TrainingWork> work_;
  std::unique_ptr<Optimizer> optimizer_;
  LearningRateSchedule learning_rate_;
  TokenFeed feed_;
  std::vector<TokenRows> microbatches_;
  std::unique_ptr<StepGraphs> graphs_;
  Consumed consumed_;
};

}  // namespace transxssm
