// A small model cut over ranks in several ways, whose every value is a function of (tensor, kind, element,
// step).
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "parallel/local.h"

namespace transxssm {

struct ToyTensor {
  std::string name;
  Shape shape;
};

inline std::vector<ToyTensor> toy_tensors() {
  return {{"embed.weight", {7, 6}},
          {"scalar", {}},
          {"cube", {3, 4, 5}},
          {"norm.weight", {5}},
          {"last.weight", {4, 9}}};
}

class ToyRank {
 public:
  // `cut` turns the ways in which the tensors are cut: rows, columns, whole on one rank, rows of uneven size.
  ToyRank(int rank, int ranks, int cut, bool moments = true, std::vector<ToyTensor> model = toy_tensors()) {
    for (size_t i = 0; i < model.size(); ++i) {
      for (TensorKind kind : {TensorKind::master, TensorKind::exp_avg, TensorKind::exp_avg_sq}) {
        if (kind != TensorKind::master && !moments) continue;
        add(model[i], kind, (static_cast<int>(i) + cut) % 4, rank, ranks);
      }
      // A copy of the first tensor on every rank: loaded, not saved.
      if (i == 0) add(model[i], TensorKind::master, 4, rank, ranks);
    }
    // A tied one stores nothing.
    add({"head.weight", model[0].shape}, TensorKind::master, 0, rank, ranks);
    tensors.back().tied_to = model[0].name;
    tensors.back().owner = false;
  }

  void fill(int64_t step) {
    for_each([&](float& value, float expected) { value = expected; }, step);
  }
  // Number of elements that differ from those of `step`.
  int64_t differences(int64_t step) {
    int64_t count = 0;
    for_each([&](float& value, float expected) { count += value != expected; }, step);
    return count;
  }

  std::vector<CheckpointTensor> tensors;

 private:
  void add(const ToyTensor& tensor, TensorKind kind, int way, int rank, int ranks) {
    CheckpointTensor entry{tensor.name, kind, tensor.shape, tensor.shape, tensor.shape, {}, true, ""};
    for (int d = 0; d < tensor.shape.rank(); ++d) entry.offset[d] = 0;
    const int dims = tensor.shape.rank();
    const auto part = [&](int64_t size, int r) {
      return way == 3 ? size * r * r / (ranks * ranks) : size * r / ranks;
    };
    if (way == 4) {
      entry.owner = false;
    } else if (way == 2 || dims == 0) {
      const int home = static_cast<int>(tensor.name.size()) % ranks;
      if (rank != home && dims > 0) entry.extent[0] = 0;
      entry.owner = rank == home;
    } else {
      const int dim = way == 1 ? dims - 1 : 0;
      entry.offset[dim] = part(tensor.shape[dim], rank);
      entry.extent[dim] = part(tensor.shape[dim], rank + 1) - entry.offset[dim];
    }
    const int64_t volume = entry.extent.num_elements();
    memory_.emplace_back(static_cast<size_t>(volume), -1.0f);
    if (volume > 0) entry.data = Tensor(memory_.back().data(), DType::f32, entry.extent);
    tensors.push_back(std::move(entry));
  }

  template <class Fn>
  void for_each(Fn&& fn, int64_t step) {
    for (CheckpointTensor& tensor : tensors) {
      const std::string& name = tensor.tied_to.empty() ? tensor.name : tensor.tied_to;
      // Distinct for each first letter, kind and step; exact in 24 bits.
      const int64_t base = (name[0] - 'a') * 16 + static_cast<int>(tensor.kind) * 4 + step * 500;
      for (int64_t i = 0; i < tensor.data.num_elements(); ++i) {
        int64_t rest = i;
        int64_t index = 0;
        int64_t stride = 1;
        for (int d = tensor.extent.rank() - 1; d >= 0; --d) {
          index += (rest % tensor.extent[d] + tensor.offset[d]) * stride;
          rest /= tensor.extent[d];
          stride *= tensor.global_shape[d];
        }
        fn(static_cast<float*>(tensor.data.raw())[i],
           static_cast<float>(static_cast<double>(base) + static_cast<double>(index) / 1024));
      }
    }
  }

  std::deque<std::vector<float>> memory_;
};

inline TrainState toy_state(int64_t step) {
  TrainState state;
  state.step = step;
  state.updates = step - step / 4;
  state.consumed_samples = 8 * step;
  state.consumed_tokens = 512 * step;
  state.seed = 0xFEDCBA9876543210;
  state.learning_rate = 1e-3 / static_cast<double>(step + 1);
  state.loss = 2.5;
  state.schedule = {.kind = "cosine",
                    .peak = 3e-4,
                    .min_fraction = 0.1,
                    .warmup_tokens = 5120,
                    .end_tokens = 51200,
                    .unit = 512};
  state.data_digest = "data";
  state.tokenizer_digest = "tokenizer";
  state.mesh = {1, 2, 1, 1};
  state.run_uuid = "00000000000000000000000000000001";
  state.wall_time_ns = 1 + step;
  return state;
}

inline CheckpointText toy_text() {
  return {std::string("model\0config", 12), "seed: 1\n", "{\"model\": {}}", "transxssm 0.1\n"};
}

inline std::string save_toy(Communicator& comm, FileSystem& files, const std::string& directory, int64_t step,
                            int cut = 0, const Retention& retention = {}) {
  ToyRank rank(comm.rank(), comm.size(), cut);
  rank.fill(step);
  return save_checkpoint(comm, files, directory, toy_state(step), toy_text(), rank.tensors, retention);
}

}  // namespace transxssm
