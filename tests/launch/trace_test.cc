// What a training run says of its time: the shares in the metrics, and the trace of one step of every rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/trace_file.h"
#include "launch/training_run.h"
#include "parallel/local.h"
#include "runtime/data/token_file.h"
#include "runtime/trace.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using nlohmann::json;
using ::testing::IsSupersetOf;

void write_tokens(const std::string& prefix) {
  TokenFileWriter writer(posix_file_system(), prefix, 64, true);
  std::vector<int32_t> document(400);
  for (size_t i = 0; i < document.size(); ++i) document[i] = static_cast<int32_t>(i * i % 64);
  writer.add_tokens(document);
  writer.end_document();
  writer.finish({});
}

TEST(TrainingTime, IsInTheMetricsAndInTheTrace) {
  const TemporaryDirectory directory;
  write_tokens(directory / "tokens");
  const TrainConfig config = parse_config(
      fmt::format(
          "model {{ vocab_size: 64 d_model: 32 num_layers: 2 num_heads: 4 d_ff: 48 d_state: 8 chunk: 8 "
          "attn_period: 2 attn_offset: 1 }} "
          "data {{ train {{ prefix: '{}/tokens' }} sequence_length: 20 validation_fraction: 0 }} "
          "schedule {{ steps: 4 }} parallel {{ pp: 2 tp: 2 global_batch: 4 }} "
          "log {{ run_directory: '{}/run' }}",
          directory.path(), directory.path()),
      "test", {}, 4);
  const std::string file = directory / "trace.json";
  run_as_ranks(4, [&](Communicator& world) {
    Stream stream(1);
    const auto output = open_trace(world.rank() == 0 ? file : "", false);
    TrainingRunOptions options{.resume = "none", .trace = true, .trace_file = output.get(), .host = "here"};
    options.signal = [](Communicator&, int64_t) { return AgreedSignal{}; };
    run_training(config, world, stream, options);
  });

  std::ifstream metrics(directory / "run/metrics.jsonl");
  int steps = 0;
  for (std::string text; std::getline(metrics, text);) {
    const json line = json::parse(text);
    if (!line.contains("train/loss")) continue;
    ++steps;
    double sum = 0;
    for (int a = 0; a < kNumActivities; ++a) {
      const double share = line.at(fmt::format("time/{}", activity_name(static_cast<Activity>(a))));
      EXPECT_GE(share, 0);
      sum += share;
    }
    EXPECT_NEAR(sum, 1, 1e-9);
    for (const char* name : {"compute", "communication", "bubble", "optimizer", "data"})
      EXPECT_GT(line.at(fmt::format("time/{}", name)).get<double>(), 0) << name;
  }
  EXPECT_EQ(steps, 4);

  EXPECT_NO_THROW(open_trace(file, false));  // the next start replaces it
  const std::string other = directory.write("data.bin", "no trace");
  EXPECT_THROW(open_trace(other, false), UsageError);
  EXPECT_THROW(open_trace(file, true, {file}), UsageError);

  const json trace = json::parse(TemporaryDirectory::read(file));
  std::map<int, std::set<std::string>> names, kinds;  // by rank
  for (const json& e : trace.at("traceEvents")) {
    if (e.at("ph") != "X") continue;
    EXPECT_GE(e.at("dur").get<double>(), 0);
    names[e.at("pid")].insert(e.at("name"));
    kinds[e.at("pid")].insert(e.at("cat"));
  }
  ASSERT_EQ(names.size(), 4u) << "a row a rank";
  for (const auto& [rank, all] : names) {
    SCOPED_TRACE(rank);
    EXPECT_THAT(all, IsSupersetOf({"Gemm", "RmsNormForward", "RmsNormBackward", "SwigluForward", "AdamW",
                                   "all_reduce", "optimizer", "data"}));
    EXPECT_THAT(kinds[rank], IsSupersetOf({"compute", "communication", "optimizer", "data"}));
  }
  // The mesh has its pipeline outermost: layer 0 (state-space) is on the ranks 0 and 1, layer 1 (attention)
  // on 2, 3.
  for (int rank : {0, 1}) EXPECT_THAT(names[rank], IsSupersetOf({"SsdForward", "SsdBackward", "receive"}));
  for (int rank : {2, 3})
    EXPECT_THAT(names[rank], IsSupersetOf({"AttentionForward", "AttentionBackward", "receive"}));
}

}  // namespace
}  // namespace transxssm
