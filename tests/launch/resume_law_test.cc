// One law for every resume: what is said of a changed setting, what is refused, how many tokens are trained.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "launch/resume.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// 100 steps of 4 rows x 32 tokens; warm-up to 1,280 tokens, end at 12,800.
TrainConfig make_config(const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all = {"schedule.tokens=12800"};
  for (const std::string& assignment : overrides) {
    if (assignment.starts_with("schedule.steps=")) all.front() = "seed=1234";
    all.push_back(assignment);
  }
  return parse_config(
      R"(model { vocab_size: 300 d_model: 16 num_layers: 2 num_heads: 2 d_ff: 32 d_state: 8 chunk: 8 }
data { train { prefix: "a" } sequence_length: 32 } parallel { global_batch: 4 }
log { run_directory: "r" } precision { compute: "f32" })",
      "test", all, 1);
}

constexpr const char* kData = "data digest";

// What a run of `config` saved after `steps` steps.
LoadedCheckpoint saved(const TrainConfig& config, int64_t steps = 50) {
  const LearningRateSchedule rate = settle_learning_rate(config);
  LoadedCheckpoint checkpoint{.path = "r/checkpoints/step", .state = {}, .text = {}, .tensors = {}};
  const int64_t tokens = steps * tokens_per_step(config);
  checkpoint.state = {.step = steps,
                      .updates = steps,
                      .consumed_samples = steps * config.parallel().global_batch(),
                      .consumed_tokens = tokens,
                      .learning_rate = rate.at(tokens),
                      .schedule = to_saved(rate),
                      .data_digest = kData,
                      .tokenizer_digest = "00000000"};
  checkpoint.text.model_config = to_text(model_config(config));
  checkpoint.text.config_textproto = to_text(config);
  return checkpoint;
}

// What a start finds of its own files.
TrainState found(const std::string& data_digest, const std::string& tokenizer_digest) {
  TrainState state;
  state.data_digest = data_digest;
  state.tokenizer_digest = tokenizer_digest;
  return state;
}

ResumePlan resume(const std::vector<std::string>& overrides, const LoadedCheckpoint& checkpoint) {
  return plan_resume(make_config(overrides), found(kData, "00000000"), checkpoint);
}
ResumePlan resume(const std::vector<std::string>& overrides) {
  return resume(overrides, saved(make_config()));
}

std::string refusal(const std::function<void()>& start) {
  try {
    start();
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}
std::string refusal(const std::vector<std::string>& overrides, const LoadedCheckpoint& checkpoint) {
  return refusal([&] { resume(overrides, checkpoint); });
}
std::string refusal(const std::vector<std::string>& overrides) {
  return refusal(overrides, saved(make_config()));
}

int64_t tokens_of(const ResumePlan& plan, const std::vector<std::string>& overrides) {
  return plan.consumed.tokens +
         (plan.last_step - plan.consumed.steps) * tokens_per_step(make_config(overrides));
}

// The curve goes on as it was: at every step that is left, and where a step of another size ends.
void expect_same_curve(const ResumePlan& plan) {
  const LearningRateSchedule whole = settle_learning_rate(make_config());
  for (int64_t tokens = 6400; tokens <= 12800; tokens += 64)
    EXPECT_EQ(plan.learning_rate.at(tokens), whole.at(tokens)) << tokens;
}

TEST(ResumeLaw, NothingChanged) {
  const ResumePlan plan = resume({});
  EXPECT_THAT(plan.differences, IsEmpty());
  EXPECT_EQ(plan.last_step, 100);
  EXPECT_EQ(plan.consumed.rows, 200);
  EXPECT_EQ(plan.consumed.updates, 50);
  expect_same_curve(plan);
}

TEST(ResumeLaw, WithoutConsequenceNothingIsSaid) {
  EXPECT_THAT(resume({"parallel.threads_per_rank=1", "log.every_steps=3", "checkpoint.every_steps=7",
                      "data.train=moved", "parallel.recompute=layer"})
                  .differences,
              IsEmpty());
}

TEST(ResumeLaw, Batch) {
  for (const auto& [batch, last_step] : {std::pair{8, 75}, std::pair{2, 150}, std::pair{3, 117}}) {
    const std::vector<std::string> overrides = {fmt::format("parallel.global_batch={}", batch)};
    const ResumePlan plan = resume(overrides);
    EXPECT_EQ(plan.last_step, last_step);
    expect_same_curve(plan);
    EXPECT_EQ(tokens_of(plan, overrides), batch == 3 ? 6400 + 67 * 96 : 12800);
    ASSERT_FALSE(plan.differences.empty());
    EXPECT_THAT(
        plan.differences,
        Contains(fmt::format("parallel.global_batch 4 -> {}: a step takes {} tokens instead of 128; 200 "
                             "rows are consumed, the next one follows",
                             batch, batch * 32)));
    EXPECT_THAT(plan.differences.back(), HasSubstr(fmt::format("to step {} and", last_step)));
  }
}

TEST(ResumeLaw, BatchOfARunByStepsCountsSteps) {
  const LoadedCheckpoint checkpoint = saved(make_config({"schedule.steps=100"}));
  const std::vector<std::string> overrides = {"schedule.steps=100", "parallel.global_batch=8"};
  const ResumePlan plan = resume(overrides, checkpoint);
  EXPECT_EQ(plan.last_step, 100);
  EXPECT_EQ(tokens_of(plan, overrides), 6400 + 50 * 256);
  expect_same_curve(plan);
  EXPECT_THAT(plan.differences.back(),
              AllOf(HasSubstr("so 50 steps of 256 tokens are left, to step 100 and 19,200 tokens"),
                    HasSubstr("its curve ends at 12,800 tokens: schedule.tokens=12800 trains so many")));
}

TEST(ResumeLaw, Length) {
  const std::vector<std::string> overrides = {"data.sequence_length=64"};
  const ResumePlan plan = resume(overrides);
  EXPECT_EQ(plan.last_step, 75);
  EXPECT_EQ(tokens_of(plan, overrides), 12800);
  EXPECT_EQ(plan.consumed.rows, 200);
  expect_same_curve(plan);
  EXPECT_THAT(plan.differences,
              Contains(HasSubstr("data.sequence_length 32 -> 64: a step takes 256 tokens")));
}

TEST(ResumeLaw, AnotherChangeOfBatchKeepsTheCurve) {
  LoadedCheckpoint checkpoint = saved(make_config({"parallel.global_batch=8"}), 30);  // 7,680 tokens
  checkpoint.state.schedule = to_saved(settle_learning_rate(make_config()));
  checkpoint.state.consumed_samples = 220;
  checkpoint.state.learning_rate = settle_learning_rate(make_config()).at(7680);
  const ResumePlan plan = resume({"parallel.global_batch=2"}, checkpoint);
  EXPECT_EQ(plan.last_step, 30 + 80);
  EXPECT_EQ(plan.consumed.rows, 220);
  expect_same_curve(plan);
}

TEST(ResumeLaw, MoreTokensOfADecayAreRefused) {
  for (const char* kind : {"cosine", "linear"}) {
    const std::string shape = fmt::format("schedule.kind={}", kind);
    const LoadedCheckpoint checkpoint = saved(make_config({shape}));
    const double before = checkpoint.state.learning_rate;
    const double after = settle_learning_rate(make_config({shape, "schedule.tokens=25600"})).at(6400);
    // The warm-up was settled: 1,280 tokens, not 2,560.
    EXPECT_GT(after, before);
    const std::string text = refusal({shape, "schedule.tokens=25600"}, checkpoint);
    EXPECT_THAT(text, HasSubstr(fmt::format("the learning rate would jump from {:.4g} to ", before)));
    EXPECT_THAT(text, HasSubstr("at step 50, 6,400 tokens (schedule.tokens 12800 -> 25600)"));
    EXPECT_THAT(text, HasSubstr("schedule.rebase=true"));
    EXPECT_THAT(refusal({shape, "schedule.tokens=9600"}, checkpoint), HasSubstr("would jump"));

    const ResumePlan plan = resume({shape, "schedule.tokens=25600", "schedule.rebase=true"}, checkpoint);
    EXPECT_EQ(plan.learning_rate, settle_learning_rate(make_config({shape, "schedule.tokens=25600"})));
    EXPECT_EQ(plan.last_step, 200);
    EXPECT_THAT(plan.differences.back(),
                HasSubstr(fmt::format("learning rate {:.4g} at step 50 (was {:.4g})", after, before)));
  }
}

TEST(ResumeLaw, StepsForTokensAndTokensForSteps) {
  const LoadedCheckpoint by_steps = saved(make_config({"schedule.steps=100"}));
  EXPECT_EQ(resume({}, by_steps).last_step, 100);
  EXPECT_EQ(resume({"schedule.steps=100"}).last_step, 100);
  expect_same_curve(resume({}, by_steps));
  EXPECT_THAT(refusal({"schedule.steps=120"}), HasSubstr("schedule.steps 0 -> 120"));
}

TEST(ResumeLaw, AConstantRateIsExtended) {
  const std::string shape = "schedule.kind=constant";
  const LoadedCheckpoint checkpoint = saved(make_config({shape}));
  const std::vector<std::string> longer = {shape, "schedule.tokens=25600"};
  const ResumePlan plan = resume(longer, checkpoint);
  EXPECT_EQ(tokens_of(plan, longer), 25600);
  EXPECT_EQ(plan.learning_rate.at(25600), checkpoint.state.learning_rate);
  EXPECT_THAT(plan.differences, Contains("schedule.tokens 12800 -> 25600: the run ends at step 200"));
}

TEST(ResumeLaw, InTheWarmUpTheEndMayMove) {
  const LoadedCheckpoint checkpoint = saved(make_config(), 5);
  const ResumePlan plan = resume({"schedule.tokens=25600"}, checkpoint);
  EXPECT_EQ(plan.learning_rate.warmup_tokens, 1280);
  EXPECT_EQ(plan.learning_rate.end_tokens, 25600);
  EXPECT_EQ(plan.learning_rate.at(640), checkpoint.state.learning_rate);
  EXPECT_THAT(plan.differences, Contains(HasSubstr("the warm-up stays as it was settled, to 1,280 tokens")));
}

// A run that is done goes on at the rate it ended with; it is never warmed again without a word.
TEST(ResumeLaw, AFinishedRunGoesOnAtItsLastRate) {
  const LoadedCheckpoint checkpoint = saved(make_config(), 100);
  const std::vector<std::string> longer = {"schedule.tokens=19200"};
  const ResumePlan plan = resume(longer, checkpoint);
  EXPECT_EQ(plan.last_step, 150);
  EXPECT_EQ(tokens_of(plan, longer), 19200);
  for (int64_t tokens = 12800; tokens <= 19200; tokens += 128)
    EXPECT_EQ(plan.learning_rate.at(tokens), checkpoint.state.learning_rate);
  EXPECT_THAT(plan.differences, Contains(AllOf(HasSubstr("has come to its end and stays 3e-05"),
                                               HasSubstr("schedule.rebase=true"))));
  const ResumePlan anew = resume({"schedule.tokens=19200", "schedule.rebase=true"}, checkpoint);
  EXPECT_EQ(anew.learning_rate, settle_learning_rate(make_config(longer)));
  // Stopped on the way and started again: the same.
  LoadedCheckpoint later = checkpoint;
  later.state.step = later.state.updates = 120;
  later.state.consumed_tokens = 15360;
  later.text.config_textproto = to_text(make_config(longer));
  EXPECT_THAT(resume(longer, later).differences, IsEmpty());
  EXPECT_EQ(resume(longer, later).learning_rate, plan.learning_rate);
}

TEST(ResumeLaw, NothingLeftIsNoReasonToRefuse) {
  const ResumePlan plan = resume({"schedule.tokens=6400"});
  EXPECT_EQ(plan.last_step, 50);
  EXPECT_EQ(plan.differences.back(), "nothing is left to do");
}

TEST(ResumeLaw, LearningRate) {
  for (const char* change : {"optimizer.learning_rate=6e-4", "schedule.kind=linear", "schedule.kind=constant",
                             "schedule.warmup_fraction=0.2", "schedule.min_lr_fraction=0"}) {
    const std::string field(change, std::string(change).find('='));
    // Half-way of cosine and line is one value but for the warm-up.
    const LoadedCheckpoint checkpoint = saved(make_config(), 80);
    EXPECT_THAT(refusal({change}, checkpoint), AllOf(HasSubstr("would jump from"), HasSubstr(field)))
        << change;
    const ResumePlan plan = resume({change, "schedule.rebase=true"}, checkpoint);
    EXPECT_EQ(plan.learning_rate, settle_learning_rate(make_config({change}))) << change;
    EXPECT_THAT(plan.differences, Contains(HasSubstr(field + " "))) << change;
  }
  // In the warm-up the shape that follows may change.
  EXPECT_EQ(resume({"schedule.kind=linear"}, saved(make_config(), 5)).learning_rate,
            settle_learning_rate(make_config({"schedule.kind=linear"})));
  EXPECT_THAT(refusal({"optimizer.learning_rate=6e-4"}, saved(make_config(), 5)),
              HasSubstr("from 0.00015 to 0.0003"));
}

TEST(ResumeLaw, OptimizerAndPrecision) {
  const ResumePlan plan = resume({"optimizer.beta2=0.95", "optimizer.weight_decay=0.1",
                                  "optimizer.clip_norm=2", "optimizer.eps=1e-6", "optimizer.beta1=0.8",
                                  "precision.residual=f32", "parallel.microbatch_size=2"});
  ASSERT_EQ(plan.differences.size(), 8u);
  EXPECT_THAT(
      plan.differences,
      Contains("optimizer.beta2 0.999 -> 0.95: from the next update on, with the moments as they are"));
  EXPECT_THAT(plan.differences, Contains(HasSubstr("optimizer.weight_decay 0.01 -> 0.1")));
  EXPECT_THAT(plan.differences, Contains(HasSubstr("precision.residual \"compute\" -> \"f32\"")));
  expect_same_curve(plan);
}

TEST(ResumeLaw, Data) {
  const auto with_data = [](const std::vector<std::string>& overrides) {
    return plan_resume(make_config(overrides), found("other", "00000000"), saved(make_config())).differences;
  };
  EXPECT_THAT(
      with_data({"data.train=a,b", "data.train[1].weight=2"}),
      Contains("data.train 1 x \"a\" -> 1 x \"a\" + 2 x \"b\": 200 rows are consumed, and the run goes on at "
               "that row of the new data"));
  EXPECT_THAT(with_data({}), Contains(HasSubstr("the training data has other contents")));
  EXPECT_THAT(resume({"seed=7", "data.pack_documents=false", "data.validation=v"}).differences,
              AllOf(Contains(HasSubstr("seed 1234 -> 7: rows come in another order")),
                    Contains(HasSubstr("data.pack_documents true -> false")),
                    Contains(HasSubstr("data.validation \"\" -> \"v\""))));
}

TEST(ResumeLaw, Tokenizer) {
  const auto with = [](const std::string& file, const std::string& digest,
                       const LoadedCheckpoint& checkpoint) {
    return plan_resume(make_config({"data.tokenizer=" + file}), found(kData, digest), checkpoint).differences;
  };
  LoadedCheckpoint checkpoint = saved(make_config());
  EXPECT_THAT(with("t.json", "12345678", checkpoint),
              Contains("data.tokenizer none -> t.json: taken, and kept in the checkpoints from now on"));
  checkpoint.text.tokenizer_json = "{}";
  checkpoint.state.tokenizer_digest = "12345678";
  EXPECT_THAT(with("elsewhere.json", "12345678", checkpoint), IsEmpty());
  EXPECT_THAT(with("", "00000000", checkpoint), Contains(HasSubstr("data.tokenizer is no longer given")));
  EXPECT_THAT(refusal([&] { with("u.json", "87654321", checkpoint); }), HasSubstr("another tokenizer"));
}

TEST(ResumeLaw, Model) {
  EXPECT_THAT(refusal({"model.d_ff=64"}), HasSubstr("the model of r/checkpoints/step is another one"));
}

// Before the counters of today, a checkpoint told its step, its tokens and its configuration by steps.
TEST(ResumeLaw, CheckpointsThatDoNotTellTheirCurve) {
  LoadedCheckpoint checkpoint = saved(make_config({"schedule.steps=100"}));
  checkpoint.state.schedule = {};
  expect_same_curve(resume({"schedule.steps=100"}, checkpoint));
  EXPECT_EQ(resume({"parallel.global_batch=8"}, checkpoint).last_step, 75);
  expect_same_curve(resume({"parallel.global_batch=8"}, checkpoint));
  EXPECT_THAT(refusal({"schedule.steps=200"}, checkpoint), HasSubstr("would jump"));
  checkpoint.text.config_textproto = "model { unknown: 1 }";
  EXPECT_THAT(resume({"schedule.steps=100"}, checkpoint).differences.front(), HasSubstr("are not compared"));
  EXPECT_THAT(refusal({"optimizer.learning_rate=1e-3"}, checkpoint), HasSubstr("would jump"));
}

TEST(ResumeLaw, WeightsWithoutARunBeginOne) {
  LoadedCheckpoint checkpoint = saved(make_config(), 0);
  checkpoint.text.config_textproto = "";
  checkpoint.state.schedule = {};
  const ResumePlan plan = resume({}, checkpoint);
  EXPECT_EQ(plan.learning_rate, settle_learning_rate(make_config()));
  EXPECT_EQ(plan.last_step, 100);
  EXPECT_THAT(plan.differences, IsEmpty());
}

TEST(RunLength, Limits) {
  const auto complaint = [](const std::vector<std::string>& overrides) {
    return refusal([&] { make_config(overrides); });
  };
  EXPECT_THAT(
      complaint({"schedule.tokens=1000000000000"}),
      HasSubstr("schedule.tokens: 1,000,000,000,000 tokens are 7,812,500,000 steps of 4 rows x 32 tokens; a "
                "run has at most 999,999,999"));
  EXPECT_THAT(complaint({"schedule.tokens=9223372036854775807"}), HasSubstr("a run has at most 999,999,999"));
  EXPECT_THAT(complaint({"schedule.steps=1000000000"}), HasSubstr("the nearest legal value is"));
  EXPECT_THAT(complaint({"schedule.steps=999999999", "parallel.global_batch=16777216",
                         "data.sequence_length=16777216"}),
              HasSubstr("are more than 1,000,000,000,000,000,000 tokens"));
  EXPECT_THAT(complaint({"schedule.tokens=9223372036854775807", "parallel.global_batch=16777216",
                         "data.sequence_length=16777216"}),
              HasSubstr("are more than 1,000,000,000,000,000,000 tokens"));
  EXPECT_EQ(complaint({"schedule.steps=999999999"}), "");
  EXPECT_EQ(tokens_at_end(make_config({"schedule.tokens=12801"})), 12928);
  // The steps left of a smaller batch count as well.
  EXPECT_THAT(refusal([] { steps_left(make_config({"schedule.tokens=127999999000"}), {.steps = 50}); }),
              HasSubstr("beside the 50 done"));
}

}  // namespace
}  // namespace transxssm
