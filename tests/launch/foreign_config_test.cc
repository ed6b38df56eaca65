// Configurations that no person wrote on purpose: what they say is refused in time, once, and fit for a
// terminal.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "launch/config.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::HasSubstr;

const std::string kGood = R"(model { preset: "tiny" } data { train { prefix: "a" } } schedule { steps: 100 }
log { run_directory: "r" })";

std::string complaint(const std::string& text, const std::string& name) {
  try {
    parse_config(text, name, {}, 1);
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}

TEST(ForeignConfig, JsonThatIsNone) {
  const auto refusal = [](const std::string& json) { return complaint(json, "run.json"); };
  EXPECT_THAT(refusal("{\"optimizer\": {\"eps\": 1e999}}"), HasSubstr("is not JSON: "));
  EXPECT_EQ(refusal("{\"seed\": 1, \"seed\": 2}"), "run.json: key seed is written twice");
  EXPECT_THAT(refusal("{\"data\": {\"tokenizer\": \"\xFF\"}}"), HasSubstr("is not JSON: "));
  EXPECT_THAT(refusal("{\"\\u001b[31m\": 1}"), HasSubstr("run.json: \\x1b[31m: unknown field"));
}

TEST(ForeignConfig, AByteOrderMarkIsSkipped) {
  EXPECT_EQ(parse_config("\xEF\xBB\xBF" + std::string(kGood), "run.textproto", {}, 1).parallel().tp(), 1);
  const std::string json =
      R"({"model": {"preset": "tiny"}, "data": {"train": [{"prefix": "a"}]}, "schedule": {"steps": 5},
    "log": {"run_directory": "r"}})";
  EXPECT_EQ(parse_config("\xEF\xBB\xBF" + json, "run.json", {}, 1).schedule().steps(), 5);
}

TEST(ForeignConfig, OnlyTheFirstMistakesAreListed) {
  std::string text = "model { preset: \"tiny\" }\n", json = "{\"a\": 0";
  for (int i = 0; i < 500; ++i) {
    text += "data { train { weight: -1 } }\n";
    json += fmt::format(", \"field{}\": 1", i);
  }
  const auto lines = [](const std::string& found) { return std::count(found.begin(), found.end(), '\n'); };
  const std::string found = complaint(text, "run.textproto");
  EXPECT_THAT(found, HasSubstr("at least 100 mistakes in the configuration:\n"));
  EXPECT_EQ(lines(found), 100);
  EXPECT_EQ(lines(complaint(json + "}", "run.json")), 100);
}

}  // namespace
}  // namespace transxssm
