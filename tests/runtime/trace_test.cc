#include "runtime/trace.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <thread>

namespace transxssm {
namespace {

using namespace std::chrono_literals;

TEST(Trace, AnInnerSpanTakesItsTimeFromTheOuter) {
  take_activity_seconds();
  const auto begin = std::chrono::steady_clock::now();
  {
    const Span outer(Activity::optimizer, "outer");
    std::this_thread::sleep_for(20ms);
    {
      const Span inner(Activity::communication, "inner");
      std::this_thread::sleep_for(60ms);
    }
  }
  const std::chrono::duration<double> both = std::chrono::steady_clock::now() - begin;
  std::this_thread::sleep_for(10ms);
  const ActivitySeconds s = take_activity_seconds();
  EXPECT_GE(s[Activity::communication], 0.06);
  EXPECT_GE(s[Activity::optimizer], 0.02);
  EXPECT_LE(s[Activity::optimizer], both.count() - 0.06) << "the inner span's time is not the outer's";
  EXPECT_GE(s[Activity::other], 0.01);
  EXPECT_NEAR(s.total(), s[Activity::communication] + s[Activity::optimizer] + s[Activity::other], 1e-9);
  EXPECT_LT(take_activity_seconds().total(), s.total()) << "each call begins anew";
}

TEST(Trace, OperationsOfAnotherActivityCountAsThat) {
  take_activity_seconds();
  Trace trace;
  {
    const Span outer(Activity::optimizer, "optimizer");
    const Span inner(Activity::compute, "AdamW");
    std::this_thread::sleep_for(20ms);
  }
  const ActivitySeconds s = take_activity_seconds();
  EXPECT_EQ(s[Activity::compute], 0);
  EXPECT_GE(s[Activity::optimizer], 0.02);
  EXPECT_EQ(trace.take().front().activity, Activity::optimizer);
}

TEST(Trace, KeepsSpansWhileItLives) {
  { const Span before(Activity::compute, "before"); }
  Trace trace;
  {
    const Span outer(Activity::compute, "outer");
    const Span inner(Activity::data, "inner");
  }
  std::thread([] { const Span other(Activity::compute, "another thread's"); }).join();
  const std::vector<TraceEvent> events = trace.take();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_STREQ(events[0].name, "inner");
  EXPECT_STREQ(events[1].name, "outer");
  EXPECT_STREQ(events[0].inside, "outer");
  EXPECT_STREQ(events[1].inside, "") << "the span before has ended";
  EXPECT_LE(events[1].begin, events[0].begin);
  EXPECT_LE(events[0].end, events[1].end);
  EXPECT_TRUE(trace.take().empty());
}

TEST(Trace, ChromeFormatHasARowForEachRankAndDevice) {
  const TraceEvent host{.name = "Gemm", .activity = Activity::compute, .begin = 0.5, .end = 0.75};
  TraceEvent device = host;
  device.device = true;
  device.bytes = 12, device.flops = 8, device.shape = "NT 2 x 1 x 2";
  const auto json = nlohmann::json::parse(
      to_chrome_trace({to_chrome_events({.rank = 0, .host = "a", .events = {host}}),
                       to_chrome_events({.rank = 3, .host = "b", .events = {device}})}));
  std::vector<std::string> rows;
  int spans = 0;
  for (const auto& e : json.at("traceEvents")) {
    if (e.at("ph") == "M") {
      rows.push_back(e.at("args").at("name"));
      continue;
    }
    ++spans;
    EXPECT_EQ(e.at("name"), "Gemm");
    EXPECT_EQ(e.at("cat"), "compute");
    EXPECT_DOUBLE_EQ(e.at("ts"), 5e5) << "microseconds";
    EXPECT_DOUBLE_EQ(e.at("dur"), 2.5e5);
    EXPECT_EQ(e.at("tid"), e.at("pid") == 3 ? 1 : 0) << "host and device apart";
    EXPECT_EQ(e.contains("args"), e.at("pid") == 3) << "what an operation costs, where that is known";
    if (e.contains("args")) {
      EXPECT_EQ(e.at("args"), nlohmann::json({{"bytes", 12.0}, {"flops", 8.0}, {"shape", "NT 2 x 1 x 2"}}));
    }
  }
  EXPECT_EQ(spans, 2);
  EXPECT_EQ(rows, (std::vector<std::string>{"rank 0 on a", "host", "rank 3 on b", "host", "device"}));
}

}  // namespace
}  // namespace transxssm
