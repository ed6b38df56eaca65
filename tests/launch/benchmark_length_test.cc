// `transxssm bench length` on shapes of a moment: its arithmetic and its form, not its times.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/benchmark.h"
#include "launch/benchmark_steps.h"
#include "launch/option_output.h"
#include "launch/plan.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// tiny has no attention in its first layers, llama-tiny in all.
LengthBenchmarkOptions quick_options() {
  return {.preset = "tiny",
          .baseline = "llama-tiny",
          .dtype = "f32",
          .tokens = 128,
          .lengths = {32, 64, 128},
          .warmup = 0,
          .steps = 2,
          .rounds = 2,
          .overrides = {"model.vocab_size=64", "model.d_model=32", "model.num_heads=2", "model.num_layers=2",
                        "model.d_ff=48", "model.d_state=8", "model.chunk=8"}};
}

struct Outcome {
  std::string text;
  json result;
};

Outcome run(LengthBenchmarkOptions options) {
  const TemporaryDirectory directory;
  const auto file = option_output(directory / "length.json", false);
  options.json = file.get();
  Worker worker;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  benchmark_lengths(options, worker, {}, 1);
  testing::internal::GetCapturedStderr();
  return {testing::internal::GetCapturedStdout(), json::parse(directory.read(directory / "length.json"))};
}

TEST(FitMemory, LinesAndCurves) {
  const std::vector<int64_t> lengths = {1024, 2048, 4096, 8192, 16384};
  std::vector<int64_t> line, curve;
  for (const int64_t t : lengths) {
    line.push_back(1'000'000 + 500 * t);
    curve.push_back(1'000'000 + 500 * t + t * t / 16);  // a tenth of a byte for each score
  }
  const MemoryLine straight = fit_memory(lengths, line);
  EXPECT_NEAR(straight.base, 1e6, 1);
  EXPECT_NEAR(straight.per_token, 500, 1e-3);
  EXPECT_LT(straight.deviation, 1e-9);
  EXPECT_TRUE(straight.linear());
  EXPECT_FALSE(fit_memory(lengths, curve).linear());
}

TEST(BenchLength, RowByRowMemoryIsTheLinesOfThePlan) {
  const LengthBenchmarkOptions options = quick_options();
  const auto [text, result] = run(options);
  EXPECT_EQ(json::parse(text.substr(text.rfind("\n{") + 1)), result) << "the last line is the same";
  EXPECT_EQ(result.at("microbatch"), "row");
  ASSERT_EQ(result.at("models").size(), 2u);
  for (const json& model : result.at("models")) {
    SCOPED_TRACE(model.at("preset").get<std::string>());
    const json& points = model.at("points");
    ASSERT_EQ(points.size(), 3u);
    const MemoryLine line{model.at("memory_line").at("base_bytes"),
                          model.at("memory_line").at("bytes_per_token"),
                          model.at("memory_line").at("deviation")};
    EXPECT_EQ(model.at("memory_line").at("linear"), line.linear());
    bool within = true;
    for (size_t i = 0; i < 3; ++i) {
      const json& p = points[i];
      const int64_t length = p.at("seq");
      EXPECT_EQ(length, options.lengths[i]);
      EXPECT_EQ(p.at("microbatch_rows"), 1);
      const std::vector<double> steps = p.at("step_seconds"), attention = p.at("attention_seconds");
      ASSERT_EQ(steps.size(), 4u) << "two of each of two rounds";
      const double first = median(points[0].at("step_seconds")), step = median(steps);
      EXPECT_NEAR(p.at("tokens_per_s").get<double>() * step, 128, 1e-9);
      EXPECT_NEAR(p.at("fall").get<double>(), 1 - first / step, 1e-12);
      EXPECT_NEAR(p.at("attention_share").get<double>(), median(attention) / step, 1e-12);
      const double growth = median(attention) - median(points[0].at("attention_seconds"));
      EXPECT_NEAR(p.at("fall_by_attention").get<double>(), 1 - first / (first + growth), 1e-12);
      within = within && p.at("fall") <= p.at("attention_share");
      EXPECT_EQ(p.at("attention_share") > 0, model.at("preset") == "llama-tiny");

      std::vector<std::string> overrides = options.overrides;
      overrides.push_back("parallel.microbatch_size=1");
      const RankMemory memory =
          make_plan(benchmark_config({model.at("preset"), 128 / length, length, "f32"}, overrides, 1))
              .stages.front()
              .memory;
      EXPECT_EQ(p.at("activation_bytes"), memory.activations);
      EXPECT_EQ(p.at("buffer_bytes"), memory.buffers);
      EXPECT_GT(p.at("scratch_bytes"), 0);
      const double bytes = p.at("memory_bytes");
      EXPECT_EQ(bytes, p.at("activation_bytes").get<double>() + p.at("buffer_bytes").get<double>() +
                           p.at("scratch_bytes").get<double>());
      EXPECT_LE(std::abs(line.base + line.per_token * static_cast<double>(length) - bytes),
                bytes * (line.deviation + 1e-9));
    }
    EXPECT_EQ(model.at("fall_at_most_attention_share"), within);
  }
  EXPECT_THAT(text, AllOf(HasSubstr("a microbatch is a row"), HasSubstr("speed      llama-tiny: falls by"),
                          HasSubstr("memory     tiny: "), HasSubstr("ratio      tiny over llama-tiny:")));
}

TEST(BenchLength, ThePlotHasBothModelsInTwoPanels) {
  const TemporaryDirectory directory;
  LengthBenchmarkOptions options = quick_options();
  const auto plot = option_output(directory / "length.svg", false);
  options.plot = plot.get();
  options.steps = options.rounds = 1;
  run(options);
  const std::string svg = directory.read(directory / "length.svg");
  EXPECT_THAT(svg, AllOf(HasSubstr("Training, 128 tokens a step, tokens/s"),
                         HasSubstr("Memory of a row's activations, MB"), HasSubstr(">64<"),
                         HasSubstr(">llama-tiny<")));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(BenchLength, WholeStepsTakeTheSameMemoryAtEveryLength) {
  LengthBenchmarkOptions options = quick_options();
  options.baseline.clear();
  options.whole_step = true;
  options.steps = options.rounds = 1;
  const auto [text, result] = run(options);
  ASSERT_EQ(result.at("models").size(), 1u);
  const json& points = result.at("models")[0].at("points");
  for (const json& p : points) {
    EXPECT_EQ(p.at("microbatch_rows").get<int64_t>() * p.at("seq").get<int64_t>(), 128);
    EXPECT_NEAR(p.at("activation_bytes").get<double>() / points[0].at("activation_bytes").get<double>(), 1,
                0.01);
  }
  EXPECT_FALSE(result.at("models")[0].contains("memory_line"));
  EXPECT_THAT(text, HasSubstr("at the same tokens a microbatch"));
}

TEST(BenchLength, RefusesLengthsThatSayNothing) {
  const auto complaint = [](std::vector<int64_t> lengths) -> std::string {
    LengthBenchmarkOptions options = quick_options();
    options.lengths = std::move(lengths);
    Worker worker;
    try {
      benchmark_lengths(options, worker, {}, 1);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(complaint({32, 128}), HasSubstr("three at the least"));
  EXPECT_THAT(complaint({32, 48, 128}), HasSubstr("48 does not divide --tokens 128"));
  EXPECT_THAT(complaint({64, 32, 128}), HasSubstr("32 stands after 64"));
  EXPECT_THAT(complaint({0, 32, 128}), HasSubstr("--seq"));
}

}  // namespace
}  // namespace transxssm
