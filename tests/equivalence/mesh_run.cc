#include "tests/equivalence/mesh_run.h"

#include <fmt/format.h>

#include <cmath>

#include "launch/gather.h"
#include "parallel/local.h"
#include "runtime/crc32c.h"
#include "runtime/rng.h"
#include "tests/support/threads.h"

namespace transxssm::equivalence {
namespace {

NamedValues gather_all(Trainer& trainer, Tensor Parameter::*field) {
  NamedValues values;
  for (LogicalTensor& tensor : gather_parameters(trainer, field))
    values[tensor.name] = std::move(tensor.values);
  return values;
}

std::vector<int64_t> gather_counts(Communicator& world, int64_t mine) {
  std::vector<double> all(static_cast<size_t>(world.size()));
  all[static_cast<size_t>(world.rank())] = static_cast<double>(mine);
  world.all_reduce(Tensor(all.data(), DType::f64, {world.size()}));
  return {all.begin(), all.end()};
}

void nudge(const ParameterStore& parameters, uint64_t seed) {
  for (const Parameter& p : parameters.all()) {
    const Rng random(seed, p.spec.name);
    for (int64_t i = 0; i < p.weight.num_elements(); ++i) {
      float& weight = p.weight.data<float>()[i];
      const bool up = random.below(static_cast<uint64_t>(i), 2) == 1;
      weight = std::nextafter(weight, up ? INFINITY : -INFINITY);
    }
  }
}

std::map<std::string, int64_t> sent_by_axis(const Mesh& mesh) {
  std::map<std::string, int64_t> sent;
  for (const AxisTraffic& axis : mesh.traffic_by_axis()) sent[axis.axis] += axis.traffic.bytes_sent;
  return sent;
}

}  // namespace

std::string MeshCase::name() const {
  return fmt::format("pp{}_dp{}_tp{}_{}_mb{}", shape.pp, shape.dp, shape.tp, pipeline, microbatch_size);
}

TrainConfig make_config(const Case& test, const MeshCase& mesh) {
  const std::string text = fmt::format(
      "model {{ {} }} data {{ train {{ prefix: 'unused' }} sequence_length: {} }} "
      "optimizer {{ learning_rate: 5e-4 clip_norm: {} }} schedule {{ steps: 100 }} "
      "parallel {{ pp: {} dp: {} tp: {} microbatch_size: {} global_batch: {} pipeline: '{}' recompute: '{}' "
      "bucket_elements: 20000 }} precision {{ compute: '{}' }} "
      "log {{ run_directory: 'unused' }} seed: 7",
      test.model, test.tokens, test.clip_norm, mesh.shape.pp, mesh.shape.dp, mesh.shape.tp,
      mesh.microbatch_size, test.global_batch, mesh.pipeline, mesh.recompute, test.compute);
  return parse_config(text, mesh.name(), {}, static_cast<int>(mesh.shape.size()));
}

void fill_rows(const Case& test, int64_t vocab_size, int64_t step, int64_t first_row, const Batch& batch) {
  for (int64_t i = 0; i < batch.rows(); ++i) {
    const int64_t row = step * test.global_batch + first_row + i;
    const Rng token(1, "token" + std::to_string(row)), cut(1, "cut" + std::to_string(row));
    // Small ids are likelier: there is something to learn.
    auto token_at = [&](int64_t t) {
      const uint64_t bound = token.below(static_cast<uint64_t>(2 * t), static_cast<uint64_t>(vocab_size)) + 1;
      return static_cast<int32_t>(token.below(static_cast<uint64_t>(2 * t + 1), bound));
    };
    int32_t position = 0, document = 0;
    for (int64_t t = 0; t < batch.tokens(); ++t, ++position) {
      const auto index = static_cast<uint64_t>(t);
      // Starts at random places, and at both sides of chunk edges of 16 tokens.
      const bool start =
          test.documents && t > 0 && (cut.below(index, 13) == 0 || (row % 2 == 0 && (t == 16 || t == 31)));
      if (start) position = 0, ++document;
      batch.input.at<int32_t>({i, t}) = token_at(t);
      batch.target.at<int32_t>({i, t}) = token_at(t + 1);
      batch.position.at<int32_t>({i, t}) = position;
      batch.document.at<int32_t>({i, t}) = document;
      // Other numbers of valid targets in every row.
      const bool skipped = test.documents && cut.below(index + 1000000, 7) < static_cast<uint64_t>(row % 5);
      batch.valid.at<uint8_t>({i, t}) = !skipped;
    }
  }
}

RunResult run_rank(const Case& test, const MeshCase& mesh_case, int steps, Communicator& world) {
  Stream stream(test_threads());
  const TrainConfig config = make_config(test, mesh_case);
  const ModelConfig model = model_config(config);
  Trainer trainer(config, world, stream);
  const bool contribute = trainer.mesh().coordinate().dp == 0;
  if (test.nudge > 0) nudge(trainer.network().parameters(), test.nudge);
  RunResult result;
  result.initial_weights = gather_all(trainer, &Parameter::weight);
  for (int step = 0; step < steps; ++step) {
    fill_rows(test, model.vocab_size, step, trainer.first_row(), trainer.batch());
    const auto before = sent_by_axis(trainer.mesh());
    const StepResult r = trainer.step();
    if (step == 0) {
      auto sent = sent_by_axis(trainer.mesh());
      for (auto& [axis, bytes] : sent) bytes -= before.contains(axis) ? before.at(axis) : 0;
      result.bytes_sent.push_back(sent);
      result.gradients = gather_all(trainer, &Parameter::gradient);
    }
    result.loss.push_back(r.loss);
    result.gradient_norm.push_back(r.gradient_norm);
  }
  result.final_weights = gather_all(trainer, &Parameter::weight);
  const ParameterStore& parameters = trainer.network().parameters();
  auto& checksums = result.weight_checksums.emplace_back();
  for (const Parameter& p : parameters.all())
    checksums[p.spec.name + " " + p.spec.box.to_string()] =
        crc32c({static_cast<const std::byte*>(p.weight.raw()), static_cast<size_t>(p.weight.num_bytes())});
  result.weight_elements = gather_counts(world, parameters.num_elements());
  for (int64_t owned : gather_counts(world, contribute ? parameters.num_owned_elements() : 0))
    result.num_parameters += owned;
  for (int64_t slots : gather_counts(world, trainer.pipeline().num_slots()))
    result.max_slots.push_back(static_cast<int>(slots));
  return result;
}

RunResult run_threads(const Case& test, const MeshCase& mesh, int steps) {
  const int n = static_cast<int>(mesh.shape.size());
  std::vector<RunResult> results(static_cast<size_t>(n));
  run_as_ranks(n, [&](Communicator& world) {
    results[static_cast<size_t>(world.rank())] = run_rank(test, mesh, steps, world);
  });
  RunResult result = std::move(results.front());
  for (size_t r = 1; r < results.size(); ++r) {
    result.bytes_sent.push_back(results[r].bytes_sent.front());
    result.weight_checksums.push_back(results[r].weight_checksums.front());
  }
  return result;
}

}  // namespace transxssm::equivalence
