#include "launch/gather.h"

#include <algorithm>

#include "launch/host_copy.h"
#include "parallel/local.h"

namespace transxssm {
namespace {

// Sums over the world: each element comes from the one rank that has it, the others hold zero.
LogicalTensor sum_over(Communicator& world, std::string name, const Shape& shape, std::vector<float> values) {
  world.all_reduce(Tensor(values.data(), DType::f32, {static_cast<int64_t>(values.size())}));
  if (world.rank() > 0) values = {};
  return {std::move(name), shape, std::move(values)};
}

}  // namespace

std::vector<LogicalTensor> gather_parameters(Trainer& trainer, Tensor Parameter::*field) {
  // Every rank must name the same tensors in the same order: those of the whole network.
  const ModelConfig& config = trainer.network().config();
  const auto alone = single_rank();
  const StageCut all{.first_layer = 0, .num_layers = static_cast<int>(config.num_layers)};
  const Network whole(config, Shard::of(config, 1, 0), all, *alone, 1);
  std::vector<LogicalTensor> tensors;
  for (const Parameter& logical : whole.parameters().all()) {
    const Shape& shape = logical.spec.global_shape;
    std::vector<float> values(static_cast<size_t>(shape.num_elements()));
    for (const Parameter& p : trainer.network().parameters().all()) {
      const bool mine = p.spec.name == logical.spec.name && p.spec.owner &&
                        trainer.mesh().coordinate().dp == 0 && p.num_elements() > 0;
      if (!mine) continue;
      Tensor target(values.data(), DType::f32, shape);
      for (int dim = 0; dim < target.rank(); ++dim)
        target = target.slice(dim, p.spec.box.offset[dim], p.spec.box.extent[dim]);
      std::vector<float> box = to_host(trainer.stream(), p.*field);
      copy(Tensor(box.data(), DType::f32, p.spec.box.extent), target);
    }
    tensors.push_back(sum_over(trainer.mesh().world(), logical.spec.name, shape, std::move(values)));
  }
  return tensors;
}

LayerRecorder::LayerRecorder(Trainer& trainer, Stream& stream, int64_t rows, int64_t tokens, bool logits)
    : trainer_(trainer), stream_(stream), rows_(rows), tokens_(tokens), logits_(logits) {
  trainer.work().observe_layers(
      [this](int microbatch, int layer, const Tensor& output) { record(microbatch, layer, output); });
}

void LayerRecorder::record(int microbatch, int layer, const Tensor& output) {
  keep("hidden." + std::to_string(layer), microbatch, output);
  const Network& network = trainer_.network();
  if (!logits_ || network.head() == nullptr || layer + 1 < network.config().num_layers) return;
  const Shape shape = {output.size(0), network.config().vocab_size};
  Scratch scratch(stream_, shape.num_elements() * dtype_bytes(DType::f32));
  const Tensor logits = scratch.carver().take(DType::f32, shape);
  network.head()->logits(stream_, output, logits);  // all ranks of tp take part
  keep("logits", microbatch, logits);
}

void LayerRecorder::keep(const std::string& name, int microbatch, const Tensor& x) {
  if (trainer_.mesh().coordinate().tp > 0) return;  // the same there
  const int64_t row_tokens = trainer_.batch().tokens(), width = x.size(1);
  const int64_t count = x.size(0) / row_tokens;
  const int64_t first = trainer_.first_row() + microbatch * count;
  for (int64_t row = first; row < std::min(first + count, rows_); ++row) {
    std::vector<float>& values = kept_[name];
    values.resize(static_cast<size_t>(rows_ * tokens_ * width));
    const std::vector<float> of_row = to_host(stream_, x.slice(0, (row - first) * row_tokens, tokens_));
    std::copy(of_row.begin(), of_row.end(), values.begin() + row * tokens_ * width);
  }
}

std::vector<LogicalTensor> LayerRecorder::gather() const {
  const ModelConfig& config = trainer_.network().config();
  std::vector<LogicalTensor> tensors;
  const auto add = [&](const std::string& name, int64_t width) {
    const Shape shape = {rows_, tokens_, width};
    std::vector<float> values(static_cast<size_t>(shape.num_elements()));
    if (const auto found = kept_.find(name); found != kept_.end()) values = found->second;
    tensors.push_back(sum_over(trainer_.mesh().world(), name, shape, std::move(values)));
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    add("hidden." + std::to_string(layer), config.d_model);
  if (logits_) add("logits", config.vocab_size);
  return tensors;
}

}  // namespace transxssm
