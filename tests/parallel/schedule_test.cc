#include "parallel/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>

#include "runtime/error.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

std::string refusal(const std::string& text, const ScheduleLimits& limits = {}) {
  try {
    validate(parse_schedule(text), {}, limits);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "valid";
}

TEST(Schedule, GeneratorsAreValidAndMeetTheirClosedForms) {
  const StageCost cost{2, 3, 1.5};
  for (int p = 1; p <= 8; ++p) {
    const ScheduleCosts costs{std::vector<StageCost>(static_cast<size_t>(p), cost), 0};
    for (int m = 1; m <= 20; ++m) {
      const double closed_form = (m + p - 1) * (cost.forward + cost.backward_input + cost.backward_weight);
      const ScheduleReport gpipe = validate(gpipe_schedule(p, m), costs);
      const ScheduleReport one = validate(one_f_one_b_schedule(p, m), costs);
      EXPECT_DOUBLE_EQ(gpipe.makespan, closed_form) << p << " stages, " << m << " microbatches";
      EXPECT_DOUBLE_EQ(one.makespan, closed_form) << p << " stages, " << m << " microbatches";
      EXPECT_NEAR(one.bubble, (p - 1.0) / (m + p - 1), 1e-12);
      for (int r = 0; r < p; ++r) {
        EXPECT_EQ(gpipe.max_slots[static_cast<size_t>(r)], m);
        EXPECT_EQ(one.max_slots[static_cast<size_t>(r)], std::min(m, p - r));
      }
    }
  }
}

TEST(Schedule, LoweredOnesAreValidWithTwoSendBuffersAndNoSlower) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 20; ++m) {
      for (const Schedule& schedule :
           {gpipe_schedule(p, m), one_f_one_b_schedule(p, m), forward_only_schedule(p, m)}) {
        const double makespan = validate(schedule).makespan;
        for (int prefetch = 0; prefetch <= 2; ++prefetch) {
          ScheduleLimits limits;
          limits.send_buffers = 2;
          EXPECT_LE(validate(lower(schedule, prefetch)).makespan, makespan);
          EXPECT_NO_THROW(validate(lower(schedule, prefetch), {}, limits))
              << p << " " << m << " " << prefetch;
        }
      }
    }
  }
}

TEST(Schedule, GradientsSentBeforeWeightsShortenTheBubble) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 20; ++m) {  // (p - 1)(f + b + w) becomes (p - 1)(f + b)
      EXPECT_DOUBLE_EQ(validate(lower(one_f_one_b_schedule(p, m))).makespan, 3 * m + 2 * (p - 1))
          << p << " " << m;
    }
  }
}

TEST(Schedule, LoweringPostsReceivesEarlyAndSendsBeforeWeights) {
  EXPECT_EQ(to_string(lower(one_f_one_b_schedule(2, 2), 1)),
            "microbatches 2\n"
            "stage_ranks 0 1\n"
            "0: 0F0 0SF0 0RB0 0F1 0SF1 0RB1 0BW0 0BW1 0RG\n"
            "1: 1RF0 1F0 1RF1 1B0 1SB0 1W0 1F1 1B1 1SB1 1W1 1RG\n");
}

TEST(Schedule, LoweringFollowsTheSendersOrder) {
  // Rank 1 takes the microbatches in the other order: its receives still come as rank 0 sends.
  const Schedule schedule = parse_schedule(
      "microbatches 2\nstage_ranks 0 1\n"
      "0: 0F0 0F1 0B0 0B1 0W0 0W1\n"
      "1: 1F1 1F0 1B1 1B0 1W0 1W1\n");
  EXPECT_THAT(to_string(lower(schedule, 0)),
              HasSubstr("1: 1RF0 1RF1 1F1 1F0 1B1 1SB1 1B0 1SB0 1W0 1W1 1RG\n"));
  EXPECT_NO_THROW(validate(lower(schedule, 0)));
  EXPECT_NO_THROW(validate(lower(schedule, 1)));
}

TEST(Schedule, SeveralStagesARank) {
  // A V: stages 0 and 3 on rank 0, 1 and 2 on rank 1. Hops inside a rank are no messages.
  const Schedule schedule = parse_schedule(
      "microbatches 1\nstage_ranks 0 1 1 0\n"
      "0: 0F0 3F0 3B0 3W0 0B0 0W0\n"
      "1: 1F0 2F0 2B0 1B0 2W0 1W0\n");
  const Schedule lowered = lower(schedule);
  EXPECT_THAT(to_string(lowered), HasSubstr("1: 1RF0 1F0 2RB0 2F0 2SF0 2B0 1B0 1SB0 2W0 2RG 1W0 1RG\n"));
  EXPECT_DOUBLE_EQ(validate(schedule).makespan, 9);  // four F and four B in a row, then the last W
  EXPECT_DOUBLE_EQ(validate(lowered).makespan, 9);
  EXPECT_EQ(validate(schedule).max_slots, (std::vector<int>{2, 2}));
}

TEST(Schedule, HopsCost) {
  const ScheduleCosts costs{{{1, 1, 1}, {1, 1, 1}}, 0.25};
  EXPECT_DOUBLE_EQ(validate(one_f_one_b_schedule(2, 1), costs).makespan, 6.5);
  EXPECT_DOUBLE_EQ(validate(lower(one_f_one_b_schedule(2, 1)), costs).makespan, 5.5);  // W of stage 1 aside
}

TEST(Schedule, TextRoundTrip) {
  for (int p : {1, 3, 8}) {
    for (int m : {1, 4, 11}) {
      for (const Schedule& schedule : {gpipe_schedule(p, m), lower(one_f_one_b_schedule(p, m)),
                                       forward_only_schedule(p, m), lower(forward_only_schedule(p, m))}) {
        EXPECT_EQ(parse_schedule(to_string(schedule)), schedule);
      }
    }
  }
}

TEST(Schedule, ParseNamesLineAndWord) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      parse_schedule(text);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "parsed";
  };
  EXPECT_THAT(message("microbatch 2\n"), HasSubstr("line 1: 'microbatch'"));
  EXPECT_THAT(message("microbatches 2\nstage_ranks 0 x\n"), HasSubstr("line 2: 'x'"));
  EXPECT_THAT(message("microbatches 2\nstage_ranks 0\n1: 0F0\n"), HasSubstr("line 3: '1:' is not '0:'"));
  for (const char* word : {"0X1", "F1", "0F", "0F-1", "0F99999999999", "0RG1", "12", "0F1F"}) {
    EXPECT_THAT(message(std::string("microbatches 2\nstage_ranks 0\n0: 0F0 ") + word + "\n"),
                HasSubstr(std::string("line 3: '") + word + "'"));
  }
  EXPECT_THAT(refusal("microbatches 1000000\nstage_ranks 0 0 0 0 0 0 0 0 0 0 0\n0:\n"),
              HasSubstr("more than"));
  EXPECT_THAT(refusal(""), HasSubstr("one of the two lines of the header"));
}

TEST(Schedule, BrokenOnesAreRefused) {
  const std::string one = "microbatches 2\nstage_ranks 0\n0: ";
  EXPECT_EQ(refusal(one + "0F0 0F1 0B0 0B1 0W0 0W1\n"), "valid");
  EXPECT_EQ(refusal(one + "0F0 0BW0 0F1 0BW1\n"), "valid");
  EXPECT_THAT(refusal(one + "0F0 0F1 0F0 0BW0 0BW1\n"), HasSubstr("0F0 occurs twice on rank 0"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0B0 0BW1\n"), HasSubstr("0W0 is missing on rank 0"));
  EXPECT_THAT(refusal(one + "0F0 0BW0 0BW1\n"), HasSubstr("0F1 is missing on rank 0"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0BW0 0BW1 0W1\n"), HasSubstr("both 0BW1 and 0W1"));
  EXPECT_THAT(refusal(one + "0BW0 0F0 0F1 0BW1\n"), HasSubstr("0F0 comes after 0BW0"));
  EXPECT_THAT(refusal(one + "0F0 0W0 0B0 0F1 0BW1\n"), HasSubstr("0B0 comes after 0W0"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0BW1 0BW0\n"), HasSubstr("0BW0 comes after 0BW1"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0BW0 0RG 0BW1\n"), HasSubstr("0BW1 comes after 0RG"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0BW0 0BW1 0F2\n"), HasSubstr("there are 1 stages and 2 microbatches"));
  EXPECT_THAT(refusal(one + "0F0 0F1 0BW0 0BW1 0RG 0SF0\n"), HasSubstr("no other rank to exchange it with"));

  const std::string two = "microbatches 1\nstage_ranks 0 1\n";
  EXPECT_THAT(refusal(two + "0: 0F0 1F0 0BW0\n1: 1BW0\n"),
              HasSubstr("1F0 is on rank 0, but its stage is on rank 1"));
  EXPECT_THAT(refusal(two + "0: 0F0 0SF0 0BW0 0RG\n1: 1F0 1BW0 1RG\n"),
              HasSubstr("0SF0 of rank 0 is never received"));
  EXPECT_THAT(refusal(two + "0: 0F0 0BW0 0RG\n1: 1RF0 1F0 1BW0 1RG\n"),
              HasSubstr("1RF0 of rank 1 is never sent"));
  EXPECT_THAT(refusal(two + "0: 0SF0 0F0 0BW0 0RG\n1: 1RF0 1F0 1BW0 1RG\n"),
              HasSubstr("0F0 comes after 0SF0"));
  EXPECT_THAT(refusal(two + "0: 0F0 0SF0 0BW0 0RG\n1: 1F0 1RF0 1BW0 1RG\n"),
              HasSubstr("1RF0 comes after 1F0"));
  EXPECT_THAT(refusal(two + "0: 0F0 0SF0 0BW0 0RG\n1: 1RF0 1F0 1BW0 1RG\n"),
              HasSubstr("0BW0 has no 0RB0 before it"));
  EXPECT_THAT(refusal("microbatches 2\nstage_ranks 0 1\n"
                      "0: 0F0 0SF0 0F1 0SF1 0RB0 0BW0 0RB1 0BW1 0RG\n"
                      "1: 1RF1 1RF0 1F0 1BW0 1SB0 1F1 1BW1 1SB1 1RG\n"),
              HasSubstr("message 0 from rank 0 to rank 1 is 0SF0, but is received by 1RF1"));
}

TEST(Schedule, DeadlockIsPrintedAsTheCycleOfWaits) {
  const std::string message = refusal(
      "microbatches 2\nstage_ranks 0 1\n"
      "0: 0F0 0BW0 0F1 0BW1\n"
      "1: 1F0 1F1 1BW0 1BW1\n");
  EXPECT_THAT(message, HasSubstr("it deadlocks: rank 0 at 0BW0 waits for 1BW0 of rank 1; "
                                 "rank 1 at 1F1 waits for 0F1 of rank 0"));
  // Only the cycle: rank 0 merely waits for those in it.
  EXPECT_THAT(refusal("microbatches 2\nstage_ranks 0 1 2\n"
                      "0: 0F0 0F1 0BW0 0BW1\n"
                      "1: 1F0 1BW0 1F1 1BW1\n"
                      "2: 2F0 2F1 2BW0 2BW1\n"),
              testing::AllOf(HasSubstr("it deadlocks: rank 1 at 1BW0 waits for 2BW0 of rank 2; "
                                       "rank 2 at 2F1 waits for 1F1 of rank 1"),
                             testing::Not(HasSubstr("rank 0 at"))));
}

TEST(Schedule, TooFewSendBuffersDeadlock) {
  // Rank 1 sends four microbatches before it listens; rank 0 cannot take the third while its answers stay
  // unread.
  const Schedule schedule = parse_schedule(
      "microbatches 4 forward_only\nstage_ranks 1 0 1\n"
      "0: 1F0 1F1 1F2 1F3\n"
      "1: 0F0 0F1 0F2 0F3 2F0 2F1 2F2 2F3\n");
  const std::string lowered = to_string(lower(schedule, 0));
  ScheduleLimits limits;
  EXPECT_EQ(refusal(lowered, limits), "valid");  // buffered sends
  limits.send_buffers = 2;
  EXPECT_EQ(refusal(lowered, limits), "valid");
  limits.send_buffers = 1;
  EXPECT_THAT(refusal(lowered, limits), HasSubstr("it deadlocks: rank 0 at 1F1 waits for 2RF0 of rank 1; "
                                                  "rank 1 at 0F3 waits for 1RF2 of rank 0"));
}

TEST(Schedule, BytesAndBudget) {
  ScheduleLimits limits;
  limits.stages = {{100, 130, 7}, {100, 130, 7}};
  // Rank 0 holds two activations and the boundary gradients received early; rank 1 one at a time.
  const ScheduleReport report = validate(one_f_one_b_schedule(2, 4), {}, limits);
  EXPECT_EQ(report.peak_bytes, (std::vector<int64_t>{230, 130}));
  EXPECT_EQ(validate(lower(one_f_one_b_schedule(2, 4)), {}, limits).peak_bytes,
            (std::vector<int64_t>{244, 144}));
  limits.rank_bytes = 229;
  EXPECT_THAT(refusal(to_string(one_f_one_b_schedule(2, 4)), limits),
              HasSubstr("at 0BW0 rank 0 holds 230 bytes of a budget of 229"));
}

double worst(const std::vector<double>& costs, const std::vector<int>& bounds, double* squares) {
  double most = 0;
  *squares = 0;
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    double sum = 0;
    for (int u = bounds[s]; u < bounds[s + 1]; ++u) sum += costs[static_cast<size_t>(u)];
    most = std::max(most, sum);
    *squares += sum * sum;
  }
  return most;
}

TEST(CutStages, IsTheBestOfAllCuts) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<double> costs(static_cast<size_t>(4 + trial % 7));
    for (double& c : costs) c = static_cast<double>(random() % 9);
    const int units = static_cast<int>(costs.size());
    const int p = 1 + trial % 4;
    double best = 1e30;
    double best_squares = 1e30;
    std::vector<int> bounds{0};
    const std::function<void()> extend = [&] {
      if (static_cast<int>(bounds.size()) == p) {
        bounds.push_back(units);
        double squares = 0;
        const double most = worst(costs, bounds, &squares);
        if (most < best || (most == best && squares < best_squares)) best = most, best_squares = squares;
        bounds.pop_back();
        return;
      }
      for (int next = bounds.back() + 1; next < units; ++next) {
        bounds.push_back(next);
        extend();
        bounds.pop_back();
      }
    };
    extend();
    const std::vector<int> cut = cut_stages(costs, p);
    ASSERT_EQ(cut.size(), static_cast<size_t>(p) + 1);
    EXPECT_EQ(cut.front(), 0);
    EXPECT_EQ(cut.back(), units);
    for (size_t s = 0; s + 1 < cut.size(); ++s) EXPECT_LT(cut[s], cut[s + 1]);
    double squares = 0;
    EXPECT_DOUBLE_EQ(worst(costs, cut, &squares), best);
    EXPECT_DOUBLE_EQ(squares, best_squares);
  }
}

TEST(CutStages, RefusesMoreStagesThanUnits) {
  EXPECT_THROW(cut_stages(std::vector<double>{1, 2}, 3), UsageError);
  EXPECT_EQ(cut_stages(std::vector<double>{0, 0, 0}, 3), (std::vector<int>{0, 1, 2, 3}));
}

}  // namespace
}  // namespace transxssm
