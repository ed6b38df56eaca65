#include "launch/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "launch/run_length.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::string kGood = R"(model { preset: "tiny" }
data { train { prefix: "a" } }
schedule { steps: 100 }
log { run_directory: "r" }
)";

// What parse_config says about `text`; "" where it is content.
std::string complaint(const std::string& text, const std::vector<std::string>& overrides = {},
                      int world = 1) {
  try {
    parse_config(text, "run.textproto", overrides, world);
    return "";
  } catch (const UsageError& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
}

TEST(Config, DefaultsOfEveryFieldAreSet) {
  const TrainConfig c = parse_config(kGood, "run.textproto", {}, 1);
  EXPECT_EQ(c.parallel().pipeline(), "1f1b");
  EXPECT_EQ(c.parallel().dp(), 1);
  EXPECT_EQ(c.optimizer().beta2(), 0.999);
  EXPECT_EQ(c.optimizer().weight_decay(), 0.01);
  EXPECT_EQ(c.schedule().kind(), "cosine");
  EXPECT_TRUE(c.data().pack_documents());
  EXPECT_EQ(c.data().train(0).weight(), 1.0);
  EXPECT_EQ(c.checkpoint().fallback(), "none");
  EXPECT_EQ(c.seed(), 1234u);
  EXPECT_EQ(model_config(c), model_preset("tiny"));
  EXPECT_EQ(steps_left(c), 100);
  EXPECT_EQ(settle_learning_rate(c).warmup_tokens, 10 * 8 * 512);
  EXPECT_EQ(tokens_per_step(c), 8 * 512);
  EXPECT_EQ(num_microbatches(c), 8);
}

TEST(Config, ResolvedConfigurationParsesToItself) {
  const TrainConfig c = parse_config(
      kGood, "run.textproto",
      {"parallel.tp=2", "optimizer.learning_rate=0.1234567890123456789", "data.train=a b,c\"d",
       "data.validation=v\\n", "schedule.steps=0", "schedule.tokens=1000001", "seed=18446744073709551615"},
      4);
  const std::string text = to_text(c);
  const TrainConfig again = parse_config(text, "resolved", {}, 4);
  EXPECT_EQ(to_text(again), text);
  EXPECT_EQ(again.optimizer().learning_rate(), c.optimizer().learning_rate());
  EXPECT_EQ(again.data().train(1).prefix(), "c\"d");
  EXPECT_EQ(again.data().validation(), "v\\n");
  EXPECT_EQ(again.data().validation_fraction(), 0);
  EXPECT_EQ(again.schedule().tokens(), 1000001);
  EXPECT_EQ(steps_left(again), 245);  // ceil(1000001 / 4096)
  EXPECT_EQ(again.seed(), 18446744073709551615u);
  EXPECT_EQ(again.parallel().dp(), 2);
}

TEST(Config, DevicesAreCheckedByName) {
  EXPECT_EQ(parse_config(kGood, "run.textproto", {}, 1).parallel().device(), "auto");
  EXPECT_EQ(complaint(kGood, {"parallel.device=cuda:3"}), "");
  EXPECT_THAT(complaint(kGood, {"parallel.device=cdua"}),
              HasSubstr("parallel.device: \"cdua\" is not known; legal values are auto, cpu, cuda, cuda:N"));
}

TEST(Config, LaterSettingsWin) {
  const std::string text = kGood + "optimizer { learning_rate: 0.5 beta1: 0.5 }";
  const TrainConfig c = parse_config(text, "run.textproto",
                                     {"optimizer.beta1=0.6", "optimizer.beta1=0.7", "model.num_layers=3"}, 1);
  EXPECT_EQ(c.optimizer().learning_rate(), 0.5);  // file over default
  EXPECT_EQ(c.optimizer().beta1(), 0.7);          // last override over file
  EXPECT_EQ(model_config(c).num_layers, 3);       // field over preset
}

TEST(Config, OverridesOfLists) {
  const TrainConfig c = parse_config(
      kGood, "run.textproto", {"data.train=x,y", "data.train[1].weight=3", "data.train[2].prefix=z"}, 1);
  ASSERT_EQ(c.data().train_size(), 3);
  EXPECT_EQ(c.data().train(0).prefix(), "x");
  EXPECT_EQ(c.data().train(1).weight(), 3);
  EXPECT_EQ(c.data().train(2).prefix(), "z");
  EXPECT_EQ(c.data().train(2).weight(), 1);
}

TEST(Config, TextprotoInItsVariety) {
  const TrainConfig c = parse_config(R"(# comment
model: < preset: 'ti' "ny" >;  # neighbouring strings are one
data { train: [{prefix: "a", weight: 2}, {prefix: "b"}] sequence_length: 0x100, pack_documents: false }
schedule { steps: 100 } log { run_directory: "r\x41" } seed: 7)",
                                     "run.textproto", {}, 1);
  EXPECT_EQ(c.data().train_size(), 2);
  EXPECT_EQ(c.data().train(0).weight(), 2);
  EXPECT_EQ(c.data().sequence_length(), 256);
  EXPECT_FALSE(c.data().pack_documents());
  EXPECT_EQ(c.log().run_directory(), "rA");
  EXPECT_EQ(c.seed(), 7u);
}

TEST(Config, JsonByExtension) {
  const std::string text =
      R"({"model": {"preset": "tiny", "num_layers": 4}, "data": {"train": [{"prefix": "a"}]},
    "schedule": {"steps": 5}, "log": {"run_directory": "r"}, "optimizer": {"learning_rate": 1e-2}, "seed": 9})";
  const TrainConfig c = parse_config(text, "run.json", {}, 1);
  EXPECT_EQ(model_config(c).num_layers, 4);
  EXPECT_EQ(c.optimizer().learning_rate(), 0.01);
  EXPECT_EQ(c.seed(), 9u);
  const auto fails = [](const std::string& json) {
    try {
      parse_config(json, "run.json", {}, 1);
      return std::string();
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
  };
  EXPECT_THAT(fails("{\"seed\": 1,\n }"), HasSubstr("run.json:2:2: is not JSON: "));
  EXPECT_EQ(fails("[1]"), "run.json: JSON is not an object");
  EXPECT_THAT(fails(R"({"seed": "4"})"), HasSubstr("run.json: seed: \"4\" is not a whole number"));
  EXPECT_THAT(fails(R"({"sede": 4})"), HasSubstr("run.json: sede: unknown field; did you mean seed?"));
  EXPECT_THAT(fails(std::string(100, '[')), HasSubstr("run.json: is nested more than 16 deep"));
}

struct Wrong {
  std::string text;  // put behind kGood, where it stands in line 5
  std::vector<std::string> overrides;
  int world;
  std::string complaint;
};

TEST(Config, GoldenComplaints) {
  const std::vector<Wrong> table = {
      {"sede: 1", {}, 1, "run.textproto:5:1: sede: unknown field; did you mean seed?"},
      {"optimizer { betta1: 0.9 }",
       {},
       1,
       "run.textproto:5:13: optimizer.betta1: unknown field; did you mean beta1?"},
      {"optimiser { nothing { here: [1, 2] } } ",
       {},
       1,
       "run.textproto:5:1: optimiser: unknown field; did you mean optimizer?"},
      {"xyzzy { }",
       {},
       1,
       "run.textproto:5:1: xyzzy: unknown field; known fields are model, data, optimizer, schedule, "
       "parallel, "
       "checkpoint, log, seed, precision"},
      {"parallel {\n  tp: four }", {}, 1, "run.textproto:6:3: parallel.tp: \"four\" is not a whole number"},
      {"parallel { tp: 1.5 }", {}, 1, "run.textproto:5:12: parallel.tp: \"1.5\" is not a whole number"},
      {"parallel { tp: \"2\" }", {}, 1, "run.textproto:5:12: parallel.tp: \"2\" is not a whole number"},
      {"parallel { pp: -1 }",
       {},
       1,
       "run.textproto:5:12: parallel.pp: -1 is out of range; the nearest legal value is 1"},
      {"parallel { pp: 99999999999 }", {}, 1, "run.textproto:5:12: parallel.pp: 99999999999 is out of range"},
      {"parallel { pipeline: 1f1b }",
       {},
       1,
       "run.textproto:5:12: parallel.pipeline: 1f1b is not a string; write \"1f1b\""},
      {"parallel { pipeline: \"gpip\" }",
       {},
       1,
       "run.textproto:5:12: parallel.pipeline: \"gpip\" is not known; legal values are 1f1b, gpipe; did you "
       "mean gpipe?"},
      {"seed: -1", {}, 1, "run.textproto:5:1: seed: -1 is out of range; the nearest legal value is 0"},
      {"seed: 1 seed: 2", {}, 1, "run.textproto:5:9: seed: is set twice, first at run.textproto:5:1"},
      {"model { }", {}, 1, "run.textproto:5:1: model: is set twice, first at run.textproto:1:1"},
      {"optimizer: 3", {}, 1, "run.textproto:5:1: optimizer: is a section; write optimizer { ... }"},
      {"optimizer { eps: nan }", {}, 1, "run.textproto:5:13: optimizer.eps: nan is not a finite number"},
      {"optimizer { eps: inf }", {}, 1, "run.textproto:5:13: optimizer.eps: inf is not a finite number"},
      {"optimizer { beta1: 1 }",
       {},
       1,
       "run.textproto:5:13: optimizer.beta1: 1 is out of range; it must be below 1"},
      {"optimizer { learning_rate: 0 }",
       {},
       1,
       "run.textproto:5:13: optimizer.learning_rate: 0 is out of range; it must be above 0"},
      {"optimizer { beta1: { } }",
       {},
       1,
       "run.textproto:5:13: optimizer.beta1: is one value, not a section or list"},
      {"parallel { tp: 010 }",
       {},
       1,
       "run.textproto:5:12: parallel.tp: 010 begins with a zero, as octal numbers do; leave it out"},
      {"",
       {"parallel.tp=-0x1"},
       1,
       "--set parallel.tp=-0x1: parallel.tp: -1 is out of range; the nearest legal value is 1"},
      {"", {"parallel.tp=0x-1"}, 1, "--set parallel.tp=0x-1: parallel.tp: \"0x-1\" is not a whole number"},
      {"checkpoint { directory: -\"v\" }",
       {},
       1,
       "run.textproto:5:26: expected a number after \"-\", found \"\"v\"\""},
      {"checkpoint { directory: '\\033[31m' }",
       {},
       1,
       "run.textproto:5:14: checkpoint.directory: \"\\x1b[31m\" is not UTF-8 without control characters"},
      {"optimizer { beta1 0.9 }",
       {},
       1,
       "run.textproto:5:19: expected \":\" after optimizer.beta1, found \"0.9\""},
      {"optimizer { beta1: 0.9",
       {},
       1,
       "run.textproto:5:23: expected \"}\" at the end of optimizer, found the end of the file"},
      {"checkpoint { directory: \"a",
       {},
       1,
       "2 mistakes in the configuration:\n  run.textproto:5:27: Unexpected end of string.\n"
       "  run.textproto:5:27: expected \"}\" at the end of checkpoint, found the end of the file"},
      {"}", {}, 1, "run.textproto:5:1: expected the name of a field, found \"}\""},
      {"checkpoint { keep_last: 0 }",
       {},
       1,
       "run.textproto:5:14: checkpoint.keep_last: 0 is out of range; the nearest legal value is 1"},
      {"", {"paralel.tp=2"}, 1, "--set paralel.tp=2: paralel: unknown field; did you mean parallel?"},
      {"", {"parallel.tq=2"}, 1, "--set parallel.tq=2: parallel.tq: unknown field; did you mean tp?"},
      {"", {"parallel.tp"}, 1, "--set parallel.tp: parallel.tp: has no value; write --set parallel.tp=VALUE"},
      {"", {"parallel.tp="}, 1, "--set parallel.tp=: parallel.tp: \"\" is not a whole number"},
      {"",
       {"parallel=1"},
       1,
       "--set parallel=1: parallel: is a section; set one of its fields: pp, dp, cp, tp, microbatch_size, "
       "global_batch, "
       "pipeline, bucket_elements, timeout_seconds, threads_per_rank, recompute, device, cuda_graph, "
       "pin_threads"},
      {"", {"seed.x=1"}, 1, "--set seed.x=1: seed.x: seed has no fields"},
      {"", {"seed[0]=1"}, 1, "--set seed[0]=1: seed[0]: seed is not a list"},
      {"",
       {"data.train.prefix=b"},
       1,
       "--set data.train.prefix=b: data.train.prefix: data.train is a list; write data.train[0]"},
      {"",
       {"data.train[5].prefix=b"},
       1,
       "--set data.train[5].prefix=b: data.train[5].prefix: data.train has 1 elements; index 5 would leave a "
       "gap"},
      {"",
       {"data.pack_documents=maybe"},
       1,
       "--set data.pack_documents=maybe: data.pack_documents: \"maybe\" is neither true nor false"},
      {"", {"log.run_directory="}, 1, "--set log.run_directory=: log.run_directory: is empty"},
      {"",
       {"model.preset=teeny"},
       1,
       "--set model.preset=teeny: model.preset: \"teeny\" is not known; known presets are tiny, "
       "transxssm-320m, "
       "transxssm-1.3b, transxssm-7b, transxssm-13b, llama-320m, llama-1.3b, mamba2-320m, "
       "mamba2-1.3b, jamba-320m, jamba-1.3b"},
      {"",
       {"model.ssd_position=conv"},
       1,
       "--set model.ssd_position=conv: model.ssd_position: \"conv\" is not known; legal values are rope, "
       "conv1d, none"},
      {"",
       {"model.rope_scaling=yarn", "model.rope_scaling_factor=0"},
       1,
       "--set model.rope_scaling_factor=0: model.rope_scaling_factor: 0 is out of range; it must be at least "
       "1 and at most 1000000"},
      {"",
       {"model.layer_pattern=SSSA"},
       1,
       "--set model.layer_pattern=SSSA: model.layer_pattern: has 4 letters; num_layers 8 needs one a layer"},
      {"",
       {"model.num_heads=6"},
       1,
       "--set model.num_heads=6: model.num_heads: 6 does not cut d_model 256 into heads of a multiple of 8; "
       "the nearest "
       "legal values are 4 and 8"},
      {"",
       {"schedule.tokens=9"},
       1,
       "--set schedule.tokens=9: schedule.tokens: is set beside schedule.steps; give one of the two"},
      {"",
       {"schedule.steps=0"},
       1,
       "--set schedule.steps=0: schedule.steps: is missing; give schedule.steps or schedule.tokens"},
      {"",
       {"data.validation=v", "data.validation_fraction=0.1"},
       1,
       "--set data.validation_fraction=0.1: data.validation_fraction: is set beside data.validation; give "
       "one of the two"},
      {"",
       {"parallel.pp=9"},
       9,
       "--set parallel.pp=9: parallel.pp: 9 stages for num_layers 8; legal values are 1 to 8"},
      {"",
       {"parallel.tp=2", "parallel.dp=3"},
       4,
       "--set parallel.dp=3: parallel.dp: pp 1 x dp 3 x cp 1 x tp 2 = 6, but the job has 4 ranks; legal "
       "meshes of 4 ranks: "
       "pp 1 dp 4 tp 1, pp 2 dp 2 tp 1, pp 4 dp 1 tp 1, pp 1 dp 2 tp 2, pp 2 dp 1 tp 2, pp 1 dp 1 tp 4"},
      {"",
       {"parallel.tp=4"},
       6,
       "run.textproto: parallel.dp: 6 ranks cannot be cut into replicas of pp 1 x cp 1 x tp 4 = 4 ranks; "
       "legal meshes of 6 "
       "ranks: pp 1 dp 6 tp 1, pp 2 dp 3 tp 1, pp 3 dp 2 tp 1, pp 6 dp 1 tp 1, pp 1 dp 3 tp 2, pp 3 dp 1 tp "
       "2"},
      {"",
       {"parallel.global_batch=10"},
       4,
       "--set parallel.global_batch=10: parallel.global_batch: 10 rows are no multiple of dp 4 x "
       "microbatch_size 1 = 4; the "
       "nearest legal values are 8 and 12"},
      {"",
       {"parallel.microbatch_size=9"},
       1,
       "--set parallel.microbatch_size=9: parallel.microbatch_size: 9 is more than global_batch 8; legal "
       "values divide 8"},
      {"",
       {"parallel.cp=2"},
       2,
       "--set parallel.cp=2: parallel.cp: 2 is out of range; the nearest legal value is 1"},
  };
  EXPECT_EQ(complaint(kGood), "");
  for (const Wrong& wrong : table) {
    const std::string found = complaint(kGood + wrong.text, wrong.overrides, wrong.world);
    EXPECT_EQ(found, wrong.complaint) << wrong.text << ::testing::PrintToString(wrong.overrides);
  }
}

TEST(Config, AllMistakesAreReportedTogether) {
  const std::string found = complaint(R"(model {
  preset: "tiny"
  layrs: 8
  d_state: 60
}
data { train { prefix: "a" weight: -1 } sequence_length: "long" }
schedule { steps: 10 kind: "cosinus" }
)",
                                      {"parallel.tp=3"}, 4);
  EXPECT_THAT(found, HasSubstr("7 mistakes in the configuration:\n"));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto:3:3: model.layrs: unknown field; "));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto:4:3: model.d_state: 60 is not a multiple of 8"));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto:6:28: data.train[0].weight: -1 is out of range"));
  EXPECT_THAT(found,
              HasSubstr("\n  run.textproto:6:41: data.sequence_length: \"long\" is not a whole number"));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto:7:22: schedule.kind: \"cosinus\" is not known"));
  EXPECT_THAT(found, HasSubstr("did you mean cosine?"));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto: log.run_directory: is missing"));
  EXPECT_THAT(found, HasSubstr("\n  run.textproto: parallel.dp: 4 ranks cannot be cut"));
}

TEST(Config, StructureMistakesHideWhatFollows) {
  const std::string found = complaint("model { preset: tiny\n", {"parallel.tpp=1"});
  EXPECT_THAT(found, HasSubstr("run.textproto:1:9: model.preset: tiny is not a string; write \"tiny\""));
  EXPECT_THAT(found, HasSubstr("did you mean tp?"));
  EXPECT_THAT(found, Not(HasSubstr("is missing")));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "x {";
  EXPECT_THAT(complaint(deep), HasSubstr("expected at most 16 levels"));
}

TEST(Config, WithoutAWorldNothingIsDerived) {
  const TrainConfig c = parse_config(kGood, "run.textproto", {"parallel.tp=2"}, 0);
  EXPECT_EQ(c.parallel().dp(), 0);
}

TEST(Config, FilesThatCannotBeRead) {
  EXPECT_THAT([] { load_config("/nonexistent/x.textproto", {}, 1); },
              ::testing::ThrowsMessage<UsageError>(
                  HasSubstr("/nonexistent/x.textproto cannot be read: No such file or directory")));
  EXPECT_THAT([] { load_config("/", {}, 1); },
              ::testing::ThrowsMessage<UsageError>(HasSubstr("Is a directory")));
  EXPECT_THAT([] { load_config("/dev/zero", {}, 1); },
              ::testing::ThrowsMessage<UsageError>(HasSubstr("is it the right file?")));
}

TEST(Config, ShippedFilesAreValid) {
  const std::filesystem::path folder = std::filesystem::path(SOURCE_TREE) / "launch/configs";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const TrainConfig c = load_config(entry.path(), {}, 8);
    EXPECT_EQ(to_text(parse_config(to_text(c), "resolved", {}, 8)), to_text(c)) << entry.path();
    EXPECT_EQ(model_config(c), model_preset(entry.path().stem().string())) << entry.path();
    ++count;
  }
  EXPECT_EQ(count, static_cast<int>(model_preset_names().size()));  // a file for every preset
}

}  // namespace
}  // namespace transxssm
