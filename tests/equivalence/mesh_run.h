// Trains a small model on a mesh of ranks over made-up rows that are hard on purpose, and gathers what every
// mesh must agree on. Ranks are threads, or processes under mpirun: the same code runs as either.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launch/trainer.h"

namespace transxssm::equivalence {

struct Case {
  std::string model;         // textproto of the model section
  int64_t tokens = 0;        // T
  int64_t global_batch = 0;  // rows a step
  bool documents = false;    // document starts inside rows, targets that do not count, uneven over rows
  double clip_norm = 1;
  std::string compute = "f32";
  // From 1 on: every initial weight is its neighbour among the floats, up or down as drawn from this seed.
  uint64_t nudge = 0;
};

struct MeshCase {
  MeshShape shape;
  std::string pipeline = "1f1b";
  int64_t microbatch_size = 1;
  std::string recompute = "keep";
  std::string name() const;
};

using NamedValues = std::map<std::string, std::vector<float>>;  // logical tensors, gathered

struct RunResult {
  std::vector<double> loss, gradient_norm;  // by step
  NamedValues initial_weights, gradients;   // gradients of step 1, summed over all ranks that share them
  NamedValues final_weights;
  // Checksum of each parameter's weights on this rank, by name and box: copies must agree to the bit.
  std::vector<std::map<std::string, uint32_t>> weight_checksums;
  int64_t num_parameters = 0;                              // owned elements over all ranks
  std::vector<int64_t> weight_elements;                    // by rank, copies included
  std::vector<int> max_slots;                              // by rank
  std::vector<std::map<std::string, int64_t>> bytes_sent;  // by rank, of one step, by axis
};

TrainConfig make_config(const Case& test, const MeshCase& mesh);

// Rows [first_row, first_row + batch.rows()) of step `step` (from zero): a function of the global row alone.
void fill_rows(const Case& test, int64_t vocab_size, int64_t step, int64_t first_row, const Batch& batch);

// One rank's part; `world` has mesh.shape.size() ranks. Rank 0's result is complete.
RunResult run_rank(const Case& test, const MeshCase& mesh, int steps, Communicator& world);

// All ranks as threads.
RunResult run_threads(const Case& test, const MeshCase& mesh, int steps);

}  // namespace transxssm::equivalence
