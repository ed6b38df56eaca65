// What a configuration will do, worked out before anything is allocated: parameters, pipeline cut, memory of
// each rank, bytes of a checkpoint. Printed before step 1 and by `train --dry-run`, which needs no ranks.
#pragma once

#include <string>
#include <vector>

#include "launch/config.h"
#include "model/accounting.h"
#include "model/precision.h"
#include "model/training.h"
#include "parallel/mesh.h"
#include "parallel/schedule.h"

namespace transxssm {

MeshShape mesh_shape(const TrainConfig& config);
Schedule pipeline_schedule(const TrainConfig& config);  // not lowered
Recompute recompute_policy(const TrainConfig& config);
// The types the network computes in on `device`.
Precision precision_of(const TrainConfig& config, const Device& device = {});
// UsageError where `device` does not compute in those types.
void check_precision(const TrainConfig& config, const Device& device);

// Bytes of one rank by kind, without the scratch memory of operations.
struct RankMemory {
  int64_t weights = 0;  // f32, rounded where products take bf16, and packed where those are faster
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  // all slots, and what waits for weight gradients
  int64_t buffers = 0;      // pipeline messages, batch, tables
  int64_t total() const { return weights + gradients + optimizer + activations + buffers; }
};

struct StagePlan {
  StageCut cut;
  std::string pattern;  // "SSSA"
  double cost = 0;      // share of all FLOPs
  RankMemory memory;    // of its heaviest tp rank
};

struct Plan {
  MeshShape mesh;
  int64_t num_parameters = 0;
  double flops_per_token = 0;
  int64_t num_microbatches = 0;
  double bubble = 0;  // share of the step in which a rank waits, from the stages' FLOPs
  std::vector<StagePlan> stages;
  int64_t checkpoint_bytes = 0;
};

// For a configuration whose parallel.dp is set; `device` is what its ranks compute on.
Plan make_plan(const TrainConfig& config, const Device& device = {});
// A few lines for a person.
std::string to_text(const Plan& plan, const TrainConfig& config);

}  // namespace transxssm
