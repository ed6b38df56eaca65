#include "launch/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <map>

#include "parallel/local.h"
#include "runtime/data/token_file.h"
#include "runtime/rng.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/threads.h"

namespace transxssm {
namespace {

constexpr int64_t kVocabulary = 60, kTokens = 12;

class ValidationTest : public testing::Test {
 protected:
  // `rows` rows of ids in [first, first + 20): sources differ in their loss.
  void write(const std::string& name, int64_t rows, uint64_t first) {
    TokenFileWriter writer(posix_file_system(), directory_ / name, kVocabulary, true);
    const Rng rng(3, name);
    for (uint64_t i = 0; i < static_cast<uint64_t>(2 * rows); ++i) {
      std::vector<int32_t> document;
      for (uint64_t t = 0; t < kTokens / 2; ++t)
        document.push_back(static_cast<int32_t>(first + rng.below(i * kTokens + t, 20)));
      writer.add_tokens(document);
      writer.end_document();
    }
    writer.finish({});
  }
  void SetUp() override {
    write("large", 40, 0);
    write("small", 8, 30);
  }
  TrainConfig config(const MeshShape& mesh, const std::string& log) const {
    return parse_config(
        fmt::format(
            "model {{ vocab_size: {} d_model: 16 num_layers: 2 num_heads: 2 d_ff: 32 d_state: 8 chunk: 8 "
            "attn_period: 2 attn_offset: 1 }} data {{ train {{ prefix: '{}/large' weight: 3 }} train {{ "
            "prefix: '{}/small' weight: 1 }} validation_fraction: 0.5 sequence_length: {} }} schedule {{ "
            "steps: 1 }} parallel {{ pp: {} dp: {} tp: {} global_batch: 8 microbatch_size: 2 }} precision {{ "
            "compute: 'f32' }} log {{ run_directory: '{}' {} }}",
            kVocabulary, directory_.path(), directory_.path(), kTokens, mesh.pp, mesh.dp, mesh.tp,
            directory_.path(), log),
        "test", {}, static_cast<int>(mesh.size()));
  }
  struct Outcome {
    std::map<std::string, double> metrics;  // last value of each
    int64_t microbatches = 0;               // computed by all replicas
    AgreedSignal signal;
    int questions = 0;  // how often rank 0 asked for signals
  };
  Outcome run(const MeshShape& mesh, const std::string& log, bool final, AgreedSignal answer = {}) {
    const TrainConfig c = config(mesh, log);
    Outcome outcome;
    std::atomic<int64_t> microbatches{0};
    const std::string name = fmt::format("metrics-{}", runs_++);
    create_directories(posix_file_system(), directory_ / name);
    run_as_ranks(static_cast<int>(mesh.size()), [&](Communicator& world) {
      Stream stream(test_threads());
      const DataFiles files(c, world, nullptr);
      Validation validation(c, files, nullptr);
      Trainer trainer(c, world, stream);
      trainer.work().observe_layers([&](int, int layer, const Tensor&) {
        if (layer == 0 && trainer.mesh().coordinate().tp == 0) ++microbatches;
      });
      std::optional<MetricsWriter> metrics;
      if (world.rank() == 0) metrics.emplace(directory_ / name, 1, RunFacts{});
      const AgreedSignal seen = validation.run(trainer, final, metrics ? &*metrics : nullptr, [&] {
        if (world.rank() == 0) ++outcome.questions;
        return answer;
      });
      if (world.rank() == 0) outcome.signal = seen;
    });
    for (const auto& [metric, series] : read_metrics((directory_ / name) + "/metrics.jsonl").series)
      outcome.metrics[metric] = series.value.back();
    outcome.microbatches = microbatches;
    return outcome;
  }
  TemporaryDirectory directory_;
  int runs_ = 0;
};

TEST_F(ValidationTest, ComputesTheRowsAskedForOnEveryMesh) {
  // Held out: 20 rows of one source, 4 of the other.
  const Outcome one = run({}, "validation_rows: 5", false);
  EXPECT_EQ(one.microbatches, 3);  // of 2 rows
  const double loss = one.metrics.at("eval/loss");
  EXPECT_NEAR(loss, std::log(kVocabulary), 0.5);
  EXPECT_NEAR(loss, 0.75 * one.metrics.at("eval/loss/large") + 0.25 * one.metrics.at("eval/loss/small"),
              1e-9);
  EXPECT_GT(std::abs(one.metrics.at("eval/loss/large") - one.metrics.at("eval/loss/small")), 1e-4);
  for (const MeshShape& mesh : {MeshShape{.dp = 2}, MeshShape{.dp = 4}, MeshShape{.pp = 2},
                                MeshShape{.tp = 2}, MeshShape{.pp = 2, .dp = 2}}) {
    const Outcome other = run(mesh, "validation_rows: 5", false);
    EXPECT_EQ(other.microbatches, 3) << mesh.to_string();
    for (const auto& [name, value] : one.metrics)
      if (std::isfinite(value)) {
        EXPECT_NEAR(other.metrics.at(name), value, 1e-5) << name << " on " << mesh.to_string();
      }
    // Replicas with nothing to do, in the last part of a longer one too.
    EXPECT_EQ(run(mesh, "final_validation_rows: 9 validation_rows: 1", true).microbatches, 1 + 4)
        << mesh.to_string();
  }
}

TEST_F(ValidationTest, TheCurveCoversTheSameRowsToItsLastPoint) {
  const Outcome during = run({}, "validation_rows: 6", false), last = run({}, "validation_rows: 6", true);
  EXPECT_EQ(during.metrics.at("eval/loss"), last.metrics.at("eval/loss"));
  EXPECT_FALSE(during.metrics.contains("eval/final_loss"));
  EXPECT_NE(last.metrics.at("eval/final_loss"), last.metrics.at("eval/loss"));
  EXPECT_NEAR(
      last.metrics.at("eval/final_loss"),
      0.75 * last.metrics.at("eval/final_loss/large") + 0.25 * last.metrics.at("eval/final_loss/small"),
      1e-9);
  EXPECT_EQ(last.microbatches, 3 + 9);  // 6 rows, then the 18 that are left: none twice
  // Fewer rows at the end than in the curve: no point of the curve.
  const Outcome shorter = run({}, "validation_rows: 6 final_validation_rows: 2", true);
  EXPECT_EQ(shorter.microbatches, 1);
  EXPECT_FALSE(shorter.metrics.contains("eval/loss"));
  EXPECT_TRUE(shorter.metrics.contains("eval/final_loss"));
}

TEST_F(ValidationTest, HearsARequestToStop) {
  const AgreedSignal stop{.request = StopRequest::save_and_exit, .signal = 15};
  const Outcome stopped = run({.dp = 2}, "validation_rows: 4", true, stop);
  EXPECT_EQ(stopped.signal.request, StopRequest::save_and_exit);
  EXPECT_EQ(stopped.microbatches, 2 + 4);  // the sample, and one part of the rest
  EXPECT_TRUE(stopped.metrics.empty());
  EXPECT_EQ(stopped.questions, 1);
  // A request to save is handed on, and the figures are those of a run without it.
  const Outcome saved = run({}, "validation_rows: 4", true, {.request = StopRequest::save_and_go_on});
  EXPECT_EQ(saved.signal.request, StopRequest::save_and_go_on);
  EXPECT_EQ(saved.metrics.at("eval/final_loss"), run({}, "", true).metrics.at("eval/final_loss"));
}

}  // namespace
}  // namespace transxssm
