// Logical tensors from the pieces that the ranks of a training job hold: for checks, which compare them
// whole.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launch/trainer.h"

namespace transxssm {

struct LogicalTensor {
  std::string name;
  Shape shape;
  std::vector<float> values;  // row-major; empty but on rank 0
};

// One field of every parameter of the whole network, in the order of computation. Collective.
std::vector<LogicalTensor> gather_parameters(Trainer& trainer, Tensor Parameter::*field);

// Keeps the output of every layer while the trainer computes, for the first `rows` rows of a step and the
// first `tokens` tokens of each.
class LayerRecorder {
 public:
  // With `logits`, those too. One recorder a trainer at a time.
  LayerRecorder(Trainer& trainer, Stream& stream, int64_t rows, int64_t tokens, bool logits);
  ~LayerRecorder() { trainer_.work().observe_layers({}); }
  LayerRecorder(const LayerRecorder&) = delete;
  LayerRecorder& operator=(const LayerRecorder&) = delete;

  // "hidden.<layer>" [rows, tokens, D] in the order of layers, then "logits" [rows, tokens, V]. Collective.
  std::vector<LogicalTensor> gather() const;

 private:
  void record(int microbatch, int layer, const Tensor& output);
  // Copies the rows of a microbatch that are kept; x [BT, width].
  void keep(const std::string& name, int microbatch, const Tensor& x);

  Trainer& trainer_;
  Stream& stream_;
  int64_t rows_, tokens_;
  bool logits_;
  std::map<std::string, std::vector<float>> kept_;
};

}  // namespace transxssm
