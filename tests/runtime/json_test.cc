#include "runtime/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>

namespace transxssm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string repeated(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Json, ReadsEveryKindOfValue) {
  const std::string text = R"({"a": [1, -2, 2.5, true, null, "x\u00e9"], "b": {"c": {}}, "": []})";
  EXPECT_EQ(parse_json(text).value, nlohmann::json::parse(text));
  EXPECT_EQ(parse_json(text).problem, "");
  EXPECT_EQ(parse_json("7").value, 7);
  EXPECT_EQ(parse_json(R"(["a", ["b"], {"c": [[], {}]}])").value,
            nlohmann::json::parse(R"(["a", ["b"], {"c": [[], {}]}])"));
}

TEST(Json, SaysWhereItIsNoJson) {
  const JsonText json = parse_json("{\"a\": 1,\n \"b\": }");
  EXPECT_THAT(json.problem, HasSubstr("is not JSON: syntax error"));
  EXPECT_THAT(json.problem, Not(HasSubstr("json.exception")));
  EXPECT_EQ(json.line, 2);
  EXPECT_EQ(json.column, 7);
  EXPECT_TRUE(json.value.is_null());
  for (const char* text : {"", "{", "[1,]", "nul", "{\"a\"}", "\"\xff\"", "1 2", "{1: 2}", "\"\\ud800\""})
    EXPECT_THAT(parse_json(text).problem, HasSubstr("is not JSON")) << text;
}

// Each was an exception of the library that a reader could forget to catch.
TEST(Json, NumbersBeyondTheRangeAreAProblem) {
  EXPECT_THAT(parse_json("{\"a\": 1e999}").problem, HasSubstr("number overflow"));
  EXPECT_THAT(parse_json("[-1e400]").problem, HasSubstr("number overflow"));
  EXPECT_EQ(parse_json("1e-999").value, 0.0);
}

TEST(Json, AKeyTwiceIsNamedWithItsPath) {
  EXPECT_EQ(parse_json(R"({"a": 1, "b": 2, "a": 1})").problem, "key a is written twice");
  EXPECT_EQ(parse_json(R"({"x": [0, {"b": 1, "b": 2}]})").problem, "key x[1].b is written twice");
  EXPECT_EQ(parse_json("{\"\\u001b[2J\": 1, \"\\u001b[2J\": 1}").problem, "key \\x1b[2J is written twice");
  EXPECT_EQ(parse_json(R"([{"a": 1}, {"a": 1}])").problem, "");
}

TEST(Json, LimitsAreExact) {
  const JsonLimits limits{.max_bytes = 40, .max_depth = 3, .max_values = 5};
  EXPECT_EQ(parse_json("[[[1, 2]]]", limits).problem, "");
  EXPECT_EQ(parse_json("[[[[]]]]", limits).problem, "is nested more than 3 deep at [0][0][0]");
  EXPECT_EQ(parse_json(R"({"a":{"b":{"c":{}}}})", limits).problem, "is nested more than 3 deep at a.b.c");
  EXPECT_EQ(parse_json("[1, 2, 3, 4]", limits).problem, "");
  EXPECT_EQ(parse_json("[1, 2, 3, 4, 5]", limits).problem, "has more than 5 values");
  EXPECT_EQ(parse_json(std::string(41, ' '), limits).problem, "has 41 bytes; at most 40 are read");
  EXPECT_TRUE(parse_json("[1, 2, 3, 4, 5]", limits).value.is_null());
}

TEST(Json, DeepTextIsRefusedWhateverItsSize) {
  const JsonLimits limits{.max_bytes = int64_t{1} << 26};
  for (const char* open : {"[", "{\"a\":"})
    EXPECT_THAT(parse_json(repeated(open, 1'000'000), limits).problem, HasSubstr("nested more than 16 deep"));
}

double seconds_for(const std::string& text) {
  const JsonLimits limits{.max_bytes = int64_t{1} << 30, .max_values = int64_t{1} << 30};
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const std::clock_t begin = std::clock();  // of this process: others may be at work
    EXPECT_EQ(parse_json(text, limits).problem, "");
    best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  return best;
}

TEST(Json, TimeGrowsWithTheText) {
  const auto object = [](int members) {
    std::string text = "{\"k\": 0";
    for (int i = 0; i < members; ++i) text += fmt::format(",\"{}\": [{}]", i, i);
    return text + "}";
  };
  EXPECT_LT(seconds_for(object(40'000)), 8 * seconds_for(object(10'000)));
}

TEST(Json, IntegersAreWholeNumbersInRange) {
  const auto integer = [](const char* text) { return json_integer(parse_json(text).value); };
  EXPECT_EQ(integer("7"), 7);
  EXPECT_EQ(integer("-7"), -7);
  EXPECT_EQ(integer("9223372036854775807"), INT64_MAX);
  for (const char* text :
       {"9223372036854775808", "18446744073709551616", "1.0", "1e3", "true", "null", "\"7\"", "[7]"})
    EXPECT_EQ(integer(text), std::nullopt) << text;
  const nlohmann::json object = parse_json(R"({"a": 3, "s": "x"})").value;
  EXPECT_EQ(json_integer(object, "a"), 3);
  EXPECT_EQ(json_integer(object, "a", 4), std::nullopt);
  EXPECT_EQ(json_integer(object, "a", 0, 2), std::nullopt);
  EXPECT_EQ(json_integer(object, "b"), std::nullopt);
  EXPECT_EQ(json_integer(parse_json("[]").value, "a"), std::nullopt);
  EXPECT_EQ(json_string(object, "s"), "x");
  EXPECT_EQ(json_string(object, "a"), std::nullopt);
}

TEST(Json, BecomesANamedErrorWithFileAndPlace) {
  try {
    parse_json<DataError>("{\n\x1b", "side.json");
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("side.json:2:1: is not JSON"), Not(HasSubstr("\x1b"))));
  }
  EXPECT_THROW(parse_json<CheckpointError>("[", "x"), CheckpointError);
  EXPECT_EQ(parse_json<DataError>("[1]", "x"), nlohmann::json::array({1}));
}

TEST(Printable, WritesOutWhatATerminalObeys) {
  EXPECT_EQ(printable("plain text, häßlich 漢字 😀"), "plain text, häßlich 漢字 😀");
  EXPECT_EQ(printable("\x1b[2J\a\n\t\x7f"), "\\x1b[2J\\x07\\x0a\\x09\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m");  // CSI of C1
  EXPECT_EQ(printable("a\xff\xc0\x80"
                      "b"),
            "a\\xff\\xc0\\x80"
            "b");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(printable("\xe2\x80\xae"
                      "x"),
            "\\u{202e}x");  // right to left
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");  // cut short
}

TEST(Printable, CutsBetweenCharacters) {
  EXPECT_EQ(printable("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(printable("abcdefghi", 8), "abcde...");
  EXPECT_EQ(printable("ab漢字漢字", 8), "ab漢...");
  EXPECT_EQ(printable("abcd\x1b\x1b", 8), "abcd...");
  EXPECT_EQ(printable_json(nlohmann::json({{"a", "\x1b"}})), "{\"a\":\"\\u001b\"}");
}

TEST(Printable, MessagesKeepTheirLines) {
  EXPECT_EQ(printable_message("one\n\ttwo \x1b[31m\r"), "one\n\ttwo \\x1b[31m\\x0d");
  EXPECT_EQ(printable_message(std::string(1000, 'a')), std::string(1000, 'a'));
}

}  // namespace
}  // namespace transxssm
