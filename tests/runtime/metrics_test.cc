#include "runtime/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace transxssm {
namespace {

namespace fs = std::filesystem;

class MetricsTest : public testing::Test {
 protected:
  MetricsTest()
      : directory_(testing::TempDir() + "metrics_" +
                   testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  ~MetricsTest() override { fs::remove_all(directory_); }

  std::string jsonl() const { return directory_ + "/metrics.jsonl"; }
  std::vector<std::string> lines() const {
    std::ifstream in(jsonl());
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) out.push_back(line);
    return out;
  }

  const std::string directory_;
};

StepMetrics step_metrics(int64_t step, double loss) {
  StepMetrics m;
  m.step = step;
  m.num_steps = 1000;
  m.loss = loss;
  m.grad_norm = 0.1;
  m.learning_rate = 3e-4;
  m.tokens_per_second = 23456.7;
  m.step_seconds = 0.1746;
  m.tokens = step * 4096;
  m.eta_seconds = 171.2;
  return m;
}

TEST(StepLine, ShowsEveryFieldOnOneLine) {
  EXPECT_EQ(format_step_line(step_metrics(7, 5.25)),
            "step    7/1000 | loss 5.2500 | grad 0.1 | lr 3.000e-04 |  23.5k tok/s | 175 ms | 28.7k tokens | "
            "eta 2m 51s");
  StepMetrics large = step_metrics(1000, std::nan(""));
  large.tokens = 2'500'000'000;
  large.tokens_per_second = 1234;
  large.eta_seconds = 2 * 86400 + 5 * 3600;
  const std::string line = format_step_line(large);
  EXPECT_NE(line.find("step 1000/1000 | loss nan"), std::string::npos) << line;
  EXPECT_NE(line.find("  1234 tok/s"), std::string::npos) << line;
  EXPECT_NE(line.find("2.5B tokens | eta 2d 05h"), std::string::npos) << line;
  large.eta_seconds = 3661;
  EXPECT_NE(format_step_line(large).find("eta 1h 01m"), std::string::npos);
}

TEST_F(MetricsTest, HeaderThenAnObjectAStepInFullPrecision) {
  const double loss = 1.0 / 3 + 1e-16;
  MetricsWriter(directory_, 1, {{"mesh", "pp 2, tp 2"}, {"parameters", "1,234"}})
      .write(step_metrics(1, loss));
  ASSERT_EQ(lines().size(), 2u);
  const auto header = nlohmann::json::parse(lines()[0]);
  EXPECT_EQ(header["facts"]["mesh"], "pp 2, tp 2");
  EXPECT_EQ(header["first_step"], 1);
  const auto record = nlohmann::json::parse(lines()[1]);
  EXPECT_EQ(record["step"], 1);
  EXPECT_EQ(record["train/loss"].get<double>(), loss) << lines()[1];
  EXPECT_EQ(record["train/tokens"].type(), nlohmann::json::value_t::number_unsigned);
  EXPECT_NE(lines()[1].find("\"train/grad_norm\":0.1,"), std::string::npos) << lines()[1];
}

TEST_F(MetricsTest, NotFiniteIsNullWithAFlag) {
  const double inf = std::numeric_limits<double>::infinity();
  MetricsWriter(directory_, 1, {})
      .write(5, std::vector<Metric>{{"eval/loss", std::nan("")}, {"eval/bits_per_byte", -inf}});
  const auto record = nlohmann::json::parse(lines().at(1));
  EXPECT_TRUE(record["eval/loss"].is_null());
  EXPECT_EQ(record["not_finite"]["eval/loss"], "nan");
  EXPECT_EQ(record["not_finite"]["eval/bits_per_byte"], "-inf");
  EXPECT_TRUE(std::isnan(read_metrics(jsonl()).find("eval/loss")->value.at(0)));
}

TEST_F(MetricsTest, ResumeAppendsAndVoidsWhatCameAfterTheCheckpoint) {
  {
    MetricsWriter writer(directory_, 1, {{"mesh", "tp 2"}});
    for (int64_t step = 1; step <= 6; ++step) writer.write(step_metrics(step, 10));
    writer.write(6, std::vector<Metric>{{"eval/loss", 10}, {"eval/bits_per_byte", 3}});
  }
  std::ofstream(jsonl(), std::ios::app) << "{\"step\":7,\"tra";  // killed in mid-line
  {
    MetricsWriter writer(directory_, 5, {{"mesh", "dp 2"}});
    for (int64_t step = 5; step <= 8; ++step) writer.write(step_metrics(step, 20));
  }
  const MetricsHistory history = read_metrics(jsonl());
  const auto* loss = history.find("train/loss");
  ASSERT_NE(loss, nullptr);
  EXPECT_EQ(loss->step, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(loss->value, (std::vector<double>{10, 10, 10, 10, 20, 20, 20, 20}));
  EXPECT_TRUE(history.find("eval/loss")->step.empty());
  EXPECT_EQ(history.resumed_steps, (std::vector<int64_t>{5}));
  EXPECT_EQ(history.facts, (RunFacts{{"mesh", "dp 2"}}));
  EXPECT_EQ(history.find("train/nothing"), nullptr);
}

TEST_F(MetricsTest, AFullDiskCostsOneWarning) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full on this machine";
  fs::create_symlink("/dev/full", jsonl());
  testing::internal::CaptureStderr();
  {
    MetricsWriter writer(directory_, 1, {});
    for (int64_t step = 1; step <= 3; ++step) writer.write(step_metrics(step, 1));
  }
  const std::string printed = testing::internal::GetCapturedStderr();
  const size_t at = printed.find("cannot write");
  EXPECT_NE(at, std::string::npos) << printed;
  EXPECT_EQ(printed.find("cannot write", at + 1), std::string::npos) << printed;
  EXPECT_NE(printed.find("No space left"), std::string::npos) << printed;
}

TEST_F(MetricsTest, NamesKeepTheirOrderAndMessagesShowNoControlCharacters) {
  const std::string header =
      "{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"facts\":{\"z\":\"1\",\"a\":\"2\"}}\n";
  std::ofstream(jsonl()) << header << "{\"step\":1,\"z\":1,\"a\":2}\n";
  const MetricsHistory history = read_metrics(jsonl());
  EXPECT_EQ(history.facts, (RunFacts{{"z", "1"}, {"a", "2"}}));
  ASSERT_EQ(history.series.size(), 2u);
  EXPECT_EQ(history.series[0].first, "z");
  std::ofstream(jsonl()) << header << "{\"step\":1,\"\\u001b[31m\":\"text\"}\n";
  try {
    read_metrics(jsonl());
    FAIL();
  } catch (const DataError& error) {
    EXPECT_EQ(error.what(), jsonl() + ":2: text is no value of \"\\x1b[31m\"");
  }
}

TEST_F(MetricsTest, RefusesWhatIsNoMetricsFile) {
  EXPECT_THROW(read_metrics(jsonl()), DataError);
  const auto refused = [&](const std::string& text) {
    std::ofstream(jsonl(), std::ios::trunc) << text;
    EXPECT_THROW(read_metrics(jsonl()), DataError) << text;
  };
  refused("{\"step\":1}\n");
  refused("{\"format\":\"something else\"}\n");
  const std::string header =
      "{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"time\":0,\"facts\":{}}\n";
  refused(header + "{\"train/loss\":1}\n");
  refused(header + "{\"step\":1,\"train/loss\":\"x\"}\n");
  refused(header + "[1]\n");
  refused(header + "{\"step\":1,\"train/loss\":[1]}\n");
  refused(header + "{\"step\":1.5,\"train/loss\":1}\n");
  refused(header + "{\"step\":1,\"train/loss\":1e999}\n");
  refused(header + "{\"step\":1,\"train/loss\":1,\"train/loss\":2}\n");
  refused("{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"facts\":{\"a\":\"b\",\"a\":\"c\"}}\n");
  refused("{\"format\":\"transxssm metrics 1\",\"facts\":{}}\n");
  refused(header + std::string((1 << 20) + 1, ' '));
  std::ofstream(jsonl(), std::ios::trunc) << header;
  EXPECT_TRUE(read_metrics(jsonl()).series.empty());
}

}  // namespace
}  // namespace transxssm
