// A run that is interrupted and resumed gives the bits of the run that was not; another mesh loads what one
// saved.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "checkpoint/checkpoint.h"
#include "launch/training_run.h"
#include "parallel/local.h"
#include "parallel/mesh.h"
#include "runtime/data/token_file.h"
#include "runtime/metrics.h"
#include "runtime/rng.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/threads.h"

namespace transxssm {
namespace {

constexpr int64_t kVocabulary = 131;
constexpr int kSteps = 14;  // an epoch ends at step 6 and at step 12

// 24 samples of 20 tokens in uneven documents.
void write_tokens(const std::string& prefix) {
  TokenFileWriter writer(posix_file_system(), prefix, kVocabulary, true);
  const Rng rng(1, "tokens");
  std::vector<int32_t> document;
  for (uint64_t i = 0; i < 24 * 20 + 19; ++i) {
    // Something to learn: a token often follows its predecessor.
    document.push_back(static_cast<int32_t>(rng.uniform(i) < 0.5 && !document.empty()
                                                ? (document.back() + 1) % kVocabulary
                                                : rng.below(i + 10000, kVocabulary)));
    if (document.size() == 7 + i % 31) {
      writer.add_tokens(document);
      writer.end_document();
      document.clear();
    }
  }
  writer.add_tokens(document);
  writer.end_document();
  writer.finish({});
}

TrainConfig make_config(const std::string& directory, const std::string& run, const MeshShape& mesh,
                        const std::string& compute = "f32") {
  return parse_config(
      fmt::format(
          "model {{ vocab_size: {} d_model: 32 num_layers: 4 num_heads: 4 d_ff: 48 d_state: 8 chunk: 8 "
          "attn_period: 4 attn_offset: 3 }} "
          "data {{ train {{ prefix: '{}/tokens' }} validation: '{}/tokens' sequence_length: 20 }} "
          "optimizer {{ learning_rate: 1e-2 }} schedule {{ steps: {} }} "
          "parallel {{ pp: {} dp: {} tp: {} global_batch: 4 }} "
          "checkpoint {{ every_steps: 5 keep_last: 10 }} precision {{ compute: '{}' }} "
          "log {{ run_directory: '{}/{}' every_steps: 100 validation_every_steps: 7 }}",
          kVocabulary, directory, directory, kSteps, mesh.pp, mesh.dp, mesh.tp, compute, directory, run),
      "test", {}, static_cast<int>(mesh.size()));
}

// Runs until the end, or until after step `stop_at`.
int train(const TrainConfig& config, int64_t stop_at, const std::string& resume = "auto") {
  int code = -1;
  const auto& p = config.parallel();
  run_as_ranks(p.pp() * p.dp() * p.tp(), [&](Communicator& world) {
    Stream stream(test_threads());
    TrainingRunOptions options{.resume = resume};
    options.signal = [&](Communicator&, int64_t step) {
      return step == stop_at ? AgreedSignal{.request = StopRequest::save_and_exit, .signal = 10}
                             : AgreedSignal{};
    };
    const int mine = run_training(config, world, stream, options);
    if (world.rank() == 0) code = mine;
  });
  return code;
}

// Every tensor of a checkpoint, whole.
std::map<std::string, std::vector<float>> read_checkpoint(const std::string& path) {
  FileSystem& files = posix_file_system();
  const LoadedCheckpoint manifest = read_manifest(files, path);
  std::map<std::string, std::vector<float>> values;
  std::vector<CheckpointTensor> targets;
  for (const TensorInfo& info : manifest.tensors) {
    auto& value = values[std::string(tensor_kind_name(info.kind)) + "/" + info.name];
    value.resize(static_cast<size_t>(info.global_shape.num_elements()));
    Shape origin = info.global_shape;
    for (int dim = 0; dim < origin.rank(); ++dim) origin[dim] = 0;
    targets.push_back({.name = info.name,
                       .kind = info.kind,
                       .global_shape = info.global_shape,
                       .offset = origin,
                       .extent = info.global_shape,
                       .data = Tensor(value.data(), DType::f32, info.global_shape)});
  }
  load_checkpoint(*single_rank(), files, path, targets);
  return values;
}

MetricsHistory::Series losses(const TrainConfig& config, const std::string& tag = "train/loss") {
  return *read_metrics(config.log().run_directory() + "/metrics.jsonl").find(tag);
}

std::string checkpoint_path(const TrainConfig& config, int step) {
  return fmt::format("{}/checkpoints/step-{:09}", config.log().run_directory(), step);
}

class Resume : public testing::TestWithParam<std::pair<MeshShape, std::string>> {
 protected:
  TrainConfig config(const std::string& run) const {
    return make_config(directory_.path(), run, GetParam().first, GetParam().second);
  }
  TemporaryDirectory directory_;
  void SetUp() override { write_tokens(directory_.path() + "/tokens"); }
};

TEST_P(Resume, GivesTheBitsOfTheRunThatWasNotInterrupted) {
  const TrainConfig whole = config("whole");
  ASSERT_EQ(train(whole, -1), 0);
  // Stopped before the first step, in the first epoch, at its last step, and in the second.
  for (int64_t stop : {0, 3, 6, 7}) {
    const TrainConfig parts = config(fmt::format("stopped-at-{}", stop));
    ASSERT_EQ(train(parts, stop), 75);
    ASSERT_EQ(train(parts, -1), 0);
    const auto expected = losses(whole), actual = losses(parts);
    EXPECT_EQ(actual.step, expected.step);
    EXPECT_EQ(actual.value, expected.value) << "stopped at " << stop;
    EXPECT_EQ(read_checkpoint(checkpoint_path(parts, kSteps)),
              read_checkpoint(checkpoint_path(whole, kSteps)));
    EXPECT_EQ(read_manifest(posix_file_system(), checkpoint_path(parts, kSteps)).state.consumed_samples,
              kSteps * 4);
  }
  EXPECT_LT(losses(whole).value.back(), losses(whole).value.front());
  // Each moment under its own name: means of gradients have both signs, means of their squares have one.
  float least_mean = 0, least_square = 0;
  for (const auto& [name, values] : read_checkpoint(checkpoint_path(whole, kSteps))) {
    float& least = name.starts_with("exp_avg_sq/") ? least_square : least_mean;
    if (name.starts_with("exp_avg")) least = std::min(least, *std::min_element(values.begin(), values.end()));
  }
  EXPECT_LT(least_mean, 0);
  EXPECT_EQ(least_square, 0);
}

std::vector<std::pair<MeshShape, std::string>> runs() {
  std::vector<std::pair<MeshShape, std::string>> all;
  for (const char* compute : {"f32", "bf16"})
    for (const MeshShape& mesh : {MeshShape{}, MeshShape{.pp = 2, .dp = 1, .cp = 1, .tp = 2},
                                  MeshShape{.pp = 1, .dp = 2, .cp = 1, .tp = 1}})
      all.emplace_back(mesh, compute);
  return all;
}

std::string run_name(const testing::TestParamInfo<std::pair<MeshShape, std::string>>& info) {
  const auto& [mesh, compute] = info.param;
  return fmt::format("pp{}_dp{}_tp{}_{}", mesh.pp, mesh.dp, mesh.tp, compute);
}

INSTANTIATE_TEST_SUITE_P(Meshes, Resume, testing::ValuesIn(runs()), run_name);

// Steps and validations are over the same rows, however they are dealt out.
TEST(Rows, EveryMeshReadsTheSame) {
  TemporaryDirectory directory;
  write_tokens(directory.path() + "/tokens");
  const TrainConfig alone = make_config(directory.path(), "alone", {});
  ASSERT_EQ(train(alone, -1), 0);
  for (const MeshShape& mesh :
       {MeshShape{.pp = 1, .dp = 2, .cp = 1, .tp = 1}, MeshShape{.pp = 2, .dp = 2, .cp = 1, .tp = 1}}) {
    const TrainConfig other = make_config(directory.path(), "run-" + mesh.to_string(), mesh);
    ASSERT_EQ(train(other, -1), 0);
    for (const std::string tag : {"train/loss", "eval/loss"}) {
      const auto expected = losses(alone, tag), actual = losses(other, tag);
      EXPECT_EQ(actual.step, expected.step);
      ASSERT_EQ(actual.value.size(), expected.value.size());
      for (size_t i = 0; i < expected.value.size(); ++i)
        EXPECT_NEAR(actual.value[i], expected.value[i], 1e-4 * expected.value[i])
            << tag << " " << i << " on " << mesh.to_string();
    }
  }
}

// Loading on another mesh and saving again without a step changes no bit.
TEST(Reshard, AnotherMeshSavesTheSameBits) {
  TemporaryDirectory directory;
  write_tokens(directory.path() + "/tokens");
  const TrainConfig first = make_config(directory.path(), "first", {.pp = 2, .dp = 1, .cp = 1, .tp = 2});
  ASSERT_EQ(train(first, 5), 75);
  const auto expected = read_checkpoint(checkpoint_path(first, 5));
  for (const MeshShape& mesh : {MeshShape{}, MeshShape{.pp = 1, .dp = 2, .cp = 1, .tp = 2},
                                MeshShape{.pp = 4}, MeshShape{.pp = 1, .dp = 1, .cp = 1, .tp = 4}}) {
    TrainConfig other = make_config(directory.path(), "other-" + mesh.to_string(), mesh);
    other.mutable_schedule()->set_steps(5);  // nothing left to do: load, validate, save
    ASSERT_EQ(train(other, -1, checkpoint_path(first, 5)), 0);
    EXPECT_EQ(read_checkpoint(checkpoint_path(other, 5)), expected) << mesh.to_string();
  }
}

}  // namespace
}  // namespace transxssm
