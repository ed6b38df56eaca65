// A folder of reference values: a model in Hugging Face form and golden.safetensors, which says what another
// program computed with it. Two kinds, told apart by the tensor `lr`:
//   one batch    input_ids [B,T] -> logits [B,T,V], loss [1], hidden.<i> [B,T,D] (optional), grad.<parameter>
//   a trajectory input_ids [S,B,T], lr [S] -> loss [S], grad_norm [S] (before clipping), final.<parameter>
// bf16_error.json, where there is one, says what bf16 may cost on this folder: {"logits": of the largest,
// "loss": relative, "grad_all": of the norm of all gradients together}. Both may have document_ids of the
// shape of input_ids. Parameters have the names of the Hugging Face form. The loss of a row is that of
// predicting each token but the first from those before it in its document.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/gather.h"
#include "launch/hugging_face.h"

namespace transxssm {

struct GoldenFolder {
  std::string path;
  ImportedModel model;
  std::vector<HfTensor> parameters;  // in the order of computation
  bool trajectory = false;
  int64_t steps = 1, rows = 0, tokens = 0;  // S, B, T
  std::vector<int64_t> input_ids;           // [S,B,T]
  std::vector<int64_t> document_ids;        // [S,B,T], or empty
  std::vector<double> learning_rate;        // [S]; empty but for a trajectory
  struct RoundingError {
    double logits = 0, loss = 0, gradients = 0;
  };
  std::optional<RoundingError> bf16_error;
  // Everything the file says beside the inputs, by name.
  std::map<std::string, std::vector<double>> expected;
};

// Throws CheckpointError naming file and tensor or field: what is missing, of another shape or type, not
// finite, out of the vocabulary, or not expected at all.
GoldenFolder read_golden(FileSystem& files, const std::string& folder);

// What this program computes in the place of the folder's figures.
struct GoldenResult {
  std::vector<double> loss, gradient_norm;  // by step; NaN where the computation stopped
  // Complete on rank 0: hidden.<i>, logits and grad.<parameter>, or final.<parameter>.
  std::vector<LogicalTensor> tensors;
};

// A run of the folder's model with sections `parallel` and `precision` of `overrides` ("parallel.tp=2") on
// `world` ranks. A trajectory takes AdamW steps with betas 0.9 and 0.999, eps 1e-8, weight decay 0.01 and
// clipping at 1. UsageError where the mesh does not suit the model.
TrainConfig golden_config(const GoldenFolder& golden, const std::vector<std::string>& overrides, int world);

// `config` is the folder's. Collective.
GoldenResult compute_golden(const GoldenFolder& golden, const TrainConfig& config, Communicator& world,
                            Stream& stream);

// Writes inputs and results in the form of golden.safetensors.
void write_golden(FileSystem& files, const std::string& path, const GoldenFolder& golden,
                  const GoldenResult& result);

}  // namespace transxssm
