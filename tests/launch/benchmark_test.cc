// `transxssm bench` on shapes of minutes: what it measures is only looked at for its form.
#include "launch/benchmark.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/benchmark_costs.h"
#include "launch/benchmark_steps.h"
#include "launch/option_output.h"
#include "launch/plan.h"
#include "launch/trainer.h"
#include "model/accounting.h"
#include "parallel/local.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

template <class Fn>
std::string complaint(Fn&& fn) {
  try {
    fn();
    return "no error";
  } catch (const UsageError& error) {
    return error.what();
  }
}

TEST(BenchmarkConfig, PresetsAndThoseCutToEightLayers) {
  const TrainConfig whole = benchmark_config({"transxssm-320m", 4, 4096, "bf16"}, {}, 1);
  EXPECT_EQ(whole.model().num_layers(), 24);
  EXPECT_EQ(whole.precision().compute(), "bf16");
  EXPECT_EQ(tokens_per_step(whole), 4 * 4096);
  EXPECT_EQ(whole.parallel().microbatch_size(), 4) << "all of a replica's rows at once";

  const ModelConfig hybrid = model_config(benchmark_config({"320m-8l", 1, 2048, "f32"}, {}, 1));
  EXPECT_EQ(hybrid.num_layers, 8);
  EXPECT_EQ(hybrid.d_model, 768);
  EXPECT_EQ(hybrid.num_attention_layers(), 1);
  const ModelConfig llama = model_config(benchmark_config({"llama-8l", 1, 2048, "f32"}, {}, 1));
  EXPECT_EQ(llama.num_layers, 8);
  EXPECT_EQ(llama.num_attention_layers(), 8);
}

TEST(BenchmarkConfig, OverridesAndMeshes) {
  const TrainConfig dp = benchmark_config({"tiny", 8, 64, "f32"}, {"parallel.dp=2"}, 2);
  EXPECT_EQ(dp.parallel().microbatch_size(), 4);
  const TrainConfig told = benchmark_config({"tiny", 8, 64, "f32"}, {"parallel.microbatch_size=2"}, 1);
  EXPECT_EQ(told.parallel().microbatch_size(), 2);
  const TrainConfig pp = benchmark_config({"tiny", 8, 64, "f32"}, {"parallel.pp=2"}, 2);
  EXPECT_EQ(pp.parallel().microbatch_size(), 1) << "a pipeline needs several";
}

TEST(BenchmarkConfig, Errors) {
  EXPECT_THAT(complaint([] {
                benchmark_config({"tinny", 8, 64, "f32"}, {}, 1);
              }),
              AllOf(HasSubstr("tinny"), HasSubstr("tiny")));
  EXPECT_THAT(complaint([] {
                benchmark_config({"tiny", 3, 64, "f32"}, {"parallel.dp=2"}, 2);
              }),
              HasSubstr("parallel.global_batch"));
  EXPECT_THAT(complaint([] {
                benchmark_config({"tiny", 8, 64, "f16"}, {}, 1);
              }),
              HasSubstr("precision.compute"));
}

TEST(OperationTimes, AddUpByNameWithTheLongerFloor) {
  const MachinePeaks peaks{.copy_bandwidth = 100, .flops_f32 = 1000, .flops_bf16 = 4000};
  const auto event = [](const char* name, double begin, double end, double bytes, double flops) {
    return TraceEvent{.name = name,
                      .activity = Activity::compute,
                      .begin = begin,
                      .end = end,
                      .bytes = bytes,
                      .flops = flops};
  };
  const std::vector<TraceEvent> events = {event("Copy", 0, 1, 50, 0),         // floor 0.5 by bytes
                                          event("Gemm", 1, 3, 100, 500),      // 1 by bytes
                                          event("Gemm", 3, 6, 10, 2000),      // 2 by arithmetic
                                          event("all_reduce", 6, 60, 0, 0)};  // says no cost: no operation
  const std::vector<OperationTime> f32 = operation_times(events, peaks, DType::f32);
  ASSERT_EQ(f32.size(), 2u);
  EXPECT_EQ(f32[0].name, "Gemm") << "the longest first";
  EXPECT_EQ(f32[0].calls, 2);
  EXPECT_DOUBLE_EQ(f32[0].seconds, 5);
  EXPECT_DOUBLE_EQ(f32[0].floor_seconds, 3);
  EXPECT_EQ(f32[1].calls, 1);
  EXPECT_DOUBLE_EQ(f32[1].seconds, 1);
  EXPECT_DOUBLE_EQ(f32[1].floor_seconds, 0.5);
  EXPECT_DOUBLE_EQ(operation_times(events, peaks, DType::bf16)[0].floor_seconds, 1.5);
}

TEST(OperationTimes, ProductsApartByWhatTheyServe) {
  const MachinePeaks peaks{.copy_bandwidth = 100, .flops_f32 = 1000, .flops_bf16 = 4000};
  const auto product = [](const char* inside, double seconds, const char* shape) {
    return TraceEvent{.name = "Gemm",
                      .inside = inside,
                      .activity = Activity::compute,
                      .end = seconds,
                      .flops = 500,
                      .shape = shape};
  };
  const std::vector<OperationTime> all =
      operation_times({product("mlp", 1, "NT 8 x 4 x 2"), product("mlp", 2, "NN 8 x 2 x 4"),
                       product("mlp", 3, "NT 8 x 2 x 4"), product("mlp", 4, "TN 4 x 2 x 8"),
                       product("head", 0.5, "NT 8 x 4 x 2"), product("mlp", 1, "NT 8 x 4 x 2")},
                      peaks, DType::f32);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].calls, 6);
  std::vector<std::string> names;
  for (const OperationTime& part : all[0].parts) names.push_back(part.name);
  EXPECT_EQ(names, (std::vector<std::string>{"mlp forward", "mlp weight gradient", "mlp input gradient",
                                             "head forward"}))
      << "the longest first";
  const OperationTime& forward = all[0].parts[0];
  EXPECT_EQ(forward.calls, 3);
  EXPECT_DOUBLE_EQ(forward.seconds, 5);
  EXPECT_DOUBLE_EQ(forward.floor_seconds, 1.5);
  ASSERT_EQ(forward.parts.size(), 2u);
  EXPECT_EQ(forward.parts[0].name, "8 x 2 x 4");
  EXPECT_EQ(forward.parts[1].calls, 2);

  const std::string text = operations_text(all, 20), table = operations_markdown(all, 20);
  EXPECT_THAT(text,
              AllOf(HasSubstr("\n  mlp forward  "), HasSubstr("\n    8 x 2 x 4 "), HasSubstr(" 57.5%")));
  EXPECT_THAT(text, testing::Not(HasSubstr("4 x 2 x 8"))) << "a part of one shape is one line";
  EXPECT_THAT(table,
              AllOf(HasSubstr("| Gemm | 6 | 11500.0 | 57.5 % | 3000.0 | 26 % |"),
                    HasSubstr("| &nbsp;&nbsp;mlp forward | 3 |"), testing::Not(HasSubstr("8 x 2 x 4"))));
  EXPECT_EQ(operations_json(all)[0]["parts"][0]["parts"][1]["name"], "8 x 4 x 2");
}

TEST(RunPeer, TheLastLineOfJsonCounts) {
  EXPECT_DOUBLE_EQ(run_peer("echo warm-up; echo '{\"tokens_per_s\": 1}'; echo '[3]'; "
                            "echo '{\"tokens_per_s\": 2.5, \"more\": 7}'; echo '{\"other\": 9}'; echo done"),
                   2.5);
  EXPECT_DOUBLE_EQ(run_peer("printf '{\"tokens_per_s\": 12}'"), 12) << "without an end of line";
}

TEST(RunPeer, SaysWhatIsWrong) {
  EXPECT_THAT(complaint([] { run_peer("echo '{\"tokens_per_s\": 1}'; exit 3"); }),
              AllOf(HasSubstr("--against"), HasSubstr("exit code 3")));
  EXPECT_THAT(complaint([] { run_peer("kill -9 $$"); }), HasSubstr("signal 9"));
  for (const char* line :
       {"nothing", "{}", "{\"tokens_per_s\": \"12\"}", "{\"tokens_per_s\": 0}", "{\"tokens_per_s\": -5}", ""})
    EXPECT_THAT(complaint([line] { run_peer(fmt::format("echo '{}'", line)); }),
                HasSubstr("no line of JSON with a positive tokens_per_s"))
        << line;
}

// A model of a moment.
const std::vector<std::string> kMinute = {"model.vocab_size=64", "model.d_model=32",    "model.num_heads=2",
                                          "model.num_layers=2",  "model.attn_period=2", "model.attn_offset=1",
                                          "model.d_ff=48",       "model.d_state=8",     "model.chunk=8"};

TEST(BenchTrain, WritesWhatItMeasured) {
  const TemporaryDirectory directory;
  const BenchmarkShape shape{"tiny", 2, 16, "f32"};
  const TrainConfig config = benchmark_config(shape, kMinute, 1);
  Worker worker;
  Stream stream(1);
  const auto json_file = option_output(directory / "result.json", false);
  const auto markdown = option_output(directory / "result.md", false);
  const auto trace = option_output(directory / "trace.json", false);
  testing::internal::CaptureStdout();
  benchmark_training(config, shape,
                     {.warmup = 1,
                      .steps = 2,
                      .rounds = 3,
                      .against = "echo '{\"tokens_per_s\": 1000}'",
                      .json = json_file.get(),
                      .markdown = markdown.get(),
                      .trace_file = trace.get(),
                      .trace = true},
                     worker, stream);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_THAT(text, AllOf(HasSubstr("bench train tiny"), HasSubstr("Gemm"), HasSubstr("SsdBackward"),
                          HasSubstr("all operations"), HasSubstr("of 3 pairs in turn"),
                          HasSubstr("mlp input gradient")));

  const json result = json::parse(directory.read(directory / "result.json"));
  EXPECT_EQ(json::parse(text.substr(text.rfind("\n{") + 1)), result) << "the last line is the same";
  EXPECT_EQ(result.at("step_seconds").size(), 6u) << "two of each of three rounds";
  const double speed = result.at("tokens_per_s");
  EXPECT_NEAR(result.at("flops_per_s").get<double>(), speed * make_plan(config).flops_per_token,
              1e-6 * speed * make_plan(config).flops_per_token);
  EXPECT_NEAR(result.at("fraction_of_peak").get<double>(),
              result.at("flops_per_s").get<double>() / result.at("peak_flops_f32").get<double>(), 1e-9);
  EXPECT_EQ(result.at("against").at("ratios").size(), 3u);
  EXPECT_NEAR(result.at("against").at("ratio").get<double>(), speed / 1000, 1e-9);
  EXPECT_EQ(result.at("allocated_bytes"), make_plan(config).stages.front().memory.total());

  EXPECT_EQ(result.at("allocated_in_steps").at("steps"), 2);
  EXPECT_EQ(result.at("allocated_in_steps").at("arenas"), 0);
  EXPECT_EQ(result.at("allocated_in_steps").at("arena_bytes"), 0);
  EXPECT_THAT(directory.read(directory / "result.md"),
              AllOf(HasSubstr("tiny, 2 x 16 tokens a step, f32"), HasSubstr("| Gemm | "),
                    HasSubstr("| &nbsp;&nbsp;head forward | "), HasSubstr("| all operations | ")));

  int64_t scans = 0;
  double seconds = 0;
  for (const json& o : result.at("operations")) {
    if (o.at("name") == "SsdForward") scans = o.at("calls");
    EXPECT_GT(o.at("floor_seconds").get<double>(), 0) << o.at("name");
    seconds += o.at("seconds").get<double>();
  }
  EXPECT_EQ(scans, 1);
  EXPECT_GT(seconds, 0);
  std::string events;
  const json traced = json::parse(directory.read(directory / "trace.json"));
  for (const json& e : traced.at("traceEvents")) events += e.at("name");
  EXPECT_THAT(events, AllOf(HasSubstr("SsdForward"), HasSubstr("AdamW"), HasSubstr("optimizer")));
}

// The arithmetic of one traced step is that of the formula for FLOP/s: every product of matrices, the states,
// and attention's scores, of which a row of T has (T + 1) / 2 a query rather than T / 2.
TEST(StepCost, IsTheFormulas) {
  struct Case {
    const char* preset;
    std::vector<std::string> overrides;
  };
  for (const Case& c :
       {Case{"tiny", {"model.vocab_size=512"}},
        Case{"transxssm-320m",
             {"model.vocab_size=512", "model.num_layers=2", "model.attn_period=2", "model.attn_offset=1"}},
        Case{"llama-320m", {"model.vocab_size=512", "model.num_layers=1"}},
        Case{"mamba2-320m", {"model.vocab_size=512", "model.num_layers=1"}}}) {
    SCOPED_TRACE(c.preset);
    constexpr int64_t kTokens = 72;
    const TrainConfig config = benchmark_config({c.preset, 1, kTokens, "f32"}, c.overrides, 1);
    const auto alone = single_rank();
    Stream stream(1);
    Trainer trainer(config, *alone, stream);
    zero(trainer.batch().document);
    for (int64_t t = 0; t < kTokens; ++t) {
      trainer.batch().input.at<int32_t>({0, t}) = trainer.batch().target.at<int32_t>({0, t}) =
          static_cast<int32_t>(t);
      trainer.batch().position.at<int32_t>({0, t}) = static_cast<int32_t>(t);
      trainer.batch().valid.at<uint8_t>({0, t}) = 1;
    }
    Trace trace;
    trainer.step();
    double flops = 0;
    for (const TraceEvent& e : trace.take()) flops += e.flops;

    const ModelConfig m = model_config(config);
    const double channels =
        m.ssd_position == SsdPosition::conv1d
            ? static_cast<double>(m.ssd_heads() * m.head_width() + 2 * m.groups() * m.d_state)
            : 0;
    const double diagonal = 6.0 * static_cast<double>(m.num_attention_layers() * m.d_model);
    const double convolutions = 6.0 * channels * static_cast<double>(m.conv_kernel * m.num_layers);
    const double expected = kTokens * (flops_per_token(m, kTokens) + diagonal - convolutions);
    EXPECT_NEAR(flops / expected, 1, 1e-12);
  }
}

TEST(BenchKernels, EveryOperationOfTheModelBesideItsFloor) {
  const TemporaryDirectory directory;
  const auto names = [&](const std::string& preset, const std::string& filter) {
    Stream stream(1);
    const auto output = option_output(directory / "kernels.json", true);
    testing::internal::CaptureStdout();
    benchmark_operations({preset, 1, 32, "f32"}, filter, output.get(), stream);
    testing::internal::GetCapturedStdout();
    std::vector<std::string> list;
    const json result = json::parse(directory.read(directory / "kernels.json"));
    for (const json& o : result.at("operations")) {
      EXPECT_GT(o.at("seconds").get<double>(), 0);
      EXPECT_GT(o.at("floor_seconds").get<double>(), 0);
      list.push_back(o.at("name"));
    }
    return list;
  };
  EXPECT_THAT(names("tiny", "scan"), testing::ElementsAre("ssd scan forward", "ssd scan backward"));
  EXPECT_THAT(names("mamba2-320m", "norm s"), testing::ElementsAre("gated norm squares"));
  EXPECT_THAT(names("mamba2-320m", "conv1d"), testing::ElementsAre("conv1d forward", "conv1d backward"));
}

}  // namespace
}  // namespace transxssm
