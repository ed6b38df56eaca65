#include "launch/command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "launch/nearest.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A program of two commands that remembers what it was run with.
class CommandLine : public ::testing::Test {
 protected:
  CommandLine() {
    program_.name = "tool";
    program_.summary = "Does things.";
    program_.version = "tool 1.2.3\n";
    const auto run = [this](const Arguments& arguments) {
      arguments_ = arguments;
      ++runs_;
      return 5;
    };
    program_.commands = {
        {.path = "train",
         .summary = "Trains",
         .example = "tool train --config a.textproto",
         .options = {{.name = "--config", .value = "FILE", .help = "Configuration", .required = true},
                     {.name = "--set", .value = "PATH=VALUE", .help = "Override", .repeatable = true},
                     {.name = "--resume",
                      .value = "HOW",
                      .help = "From where",
                      .standard = "auto",
                      .choices = {"auto", "none"}},
                     {.name = "--dry-run", .help = "Only checks", .group = "Checks"},
                     {.name = "--seed", .value = "N", .help = "Seed", .standard = "7", .group = "Checks"}},
         .run = run},
        {.path = "data pack",
         .summary = "Packs",
         .example = "tool data pack out --input a b",
         .options = {{.name = "--input", .value = "FILE...", .help = "Files", .required = true}},
         .positionals = {{.name = "OUT", .help = "Where to"},
                         {.name = "REST...", .help = "More", .required = false}},
         .run = run},
        {.path = "data list", .summary = "Lists", .example = "tool data list", .run = run},
    };
  }

  int run(const std::vector<std::string>& words) { return run_program(program_, words); }
  std::string complaint(const std::vector<std::string>& words) {
    try {
      run(words);
      return "";
    } catch (const UsageError& error) {
      return error.what();
    }
  }
  std::string printed(const std::vector<std::string>& words, int code = 0) {
    ::testing::internal::CaptureStdout();
    EXPECT_EQ(run(words), code);
    return ::testing::internal::GetCapturedStdout();
  }

  Program program_;
  Arguments arguments_;
  int runs_ = 0;
};

TEST_F(CommandLine, ValuesAndDefaults) {
  EXPECT_EQ(run({"train", "--config", "f", "--set", "a=1", "--set=b=2", "--dry-run"}), 5);
  EXPECT_EQ(arguments_.text("--config"), "f");
  EXPECT_THAT(arguments_.list("--set"), ElementsAre("a=1", "b=2"));
  EXPECT_TRUE(arguments_.flag("--dry-run"));
  EXPECT_FALSE(arguments_.has("--resume"));
  EXPECT_EQ(arguments_.text("--resume"), "auto");
  EXPECT_EQ(arguments_.integer("--seed"), 7);
  EXPECT_THROW(arguments_.text("--nothing"), std::exception);
}

TEST_F(CommandLine, ManyValuesAndPositionals) {
  run({"data", "pack", "out", "--input", "a", "-b", "c"});
  EXPECT_THAT(arguments_.list("--input"), ElementsAre("a", "-b", "c"));
  EXPECT_EQ(arguments_.text("OUT"), "out");
  EXPECT_THAT(arguments_.list("REST..."), IsEmpty());
  run({"data", "pack", "--input=a", "--input", "b", "--", "--out", "x", "-y"});
  EXPECT_THAT(arguments_.list("--input"), ElementsAre("a", "b"));
  EXPECT_EQ(arguments_.text("OUT"), "--out");
  EXPECT_THAT(arguments_.list("REST..."), ElementsAre("x", "-y"));
}

TEST_F(CommandLine, Numbers) {
  run({"train", "--config", "f", "--seed", "-12"});
  EXPECT_EQ(arguments_.integer("--seed"), -12);
  EXPECT_THAT(
      [&] { arguments_.integer("--seed", 1, 9); },
      ::testing::ThrowsMessage<UsageError>("--seed -12 is out of range; the nearest legal value is 1"));
  run({"train", "--config", "f", "--seed", "99999999999999999999"});
  EXPECT_THAT([&] { arguments_.integer("--seed", 1, 9); },
              ::testing::ThrowsMessage<UsageError>(HasSubstr("the nearest legal value is 9")));
  run({"train", "--config", "f", "--seed", "12x"});
  EXPECT_THAT([&] { arguments_.integer("--seed"); },
              ::testing::ThrowsMessage<UsageError>("--seed \"12x\" is not a whole number"));
  run({"train", "--config", "f", "--seed=0.25"});
  EXPECT_EQ(arguments_.number("--seed", 0, 1), 0.25);
  EXPECT_THROW(arguments_.number("--seed", 0.5, 1), UsageError);
  run({"train", "--config", "f", "--seed=nan"});
  EXPECT_THROW(arguments_.number("--seed"), UsageError);
  run({"train", "--config", "f", "--seed="});
  EXPECT_THROW(arguments_.integer("--seed"), UsageError);
}

TEST_F(CommandLine, GoldenComplaints) {
  const std::string see = "; see `tool train --help`";
  EXPECT_EQ(complaint({"train", "--confg", "f"}),
            "train: unknown option --confg; did you mean --config?" + see);
  EXPECT_EQ(complaint({"train", "--zebra"}), "train: unknown option --zebra" + see);
  EXPECT_EQ(complaint({"train", "-x"}), "train: unknown option -x" + see);
  EXPECT_EQ(complaint({"train", "--config"}), "train: --config needs a value, FILE" + see);
  EXPECT_EQ(complaint({"train", "--config", "--dry-run"}), "train: --config needs a value, FILE" + see);
  EXPECT_EQ(complaint({"train"}), "train: --config FILE is missing" + see);
  EXPECT_EQ(complaint({"train", "--config", "a", "--config", "b"}), "train: --config is given twice" + see);
  EXPECT_EQ(complaint({"train", "--config", "a", "stray"}), "train: unexpected argument \"stray\"" + see);
  EXPECT_EQ(complaint({"train", "--config", "a", "--dry-run=1"}), "train: --dry-run takes no value" + see);
  EXPECT_EQ(complaint({"train", "--config", "a", "--resume", "nnoe"}),
            "train: --resume is \"nnoe\"; legal values are auto, none; did you mean none?" + see);
  EXPECT_EQ(complaint({"data", "pack", "--input", "a"}),
            "data pack: OUT is missing; see `tool data pack --help`");
  EXPECT_EQ(complaint({"data", "pakc"}),
            "unknown command \"data pakc\"; did you mean pack?; see `tool data --help`");
  EXPECT_EQ(complaint({"trian"}), "unknown command \"trian\"; did you mean train?; see `tool --help`");
  EXPECT_EQ(complaint({"--verbose"}), "unknown option \"--verbose\"; see `tool --help`");
  EXPECT_EQ(complaint({"completion", "fish"}),
            "completion: legal values are bash; type `source <(tool completion bash)`");
  EXPECT_EQ(runs_, 0);
}

TEST_F(CommandLine, HelpBeginsWithAnExampleAndGroupsOptions) {
  const std::string help = printed({"train", "--config", "--help"});
  EXPECT_EQ(help, R"(Trains

Example:
  tool train --config a.textproto

Usage: tool train --config FILE [options]

Options:
  --config FILE             Configuration [required]
  --set PATH=VALUE          Override [may be repeated]
  --resume HOW              From where (auto, none) [default: auto]

Checks:
  --dry-run                 Only checks
  --seed N                  Seed [default: 7]
)");
  EXPECT_EQ(printed({"help", "train"}), help);
  EXPECT_EQ(runs_, 0);
  const std::string all = printed({"--help"});
  for (const Command& command : program_.commands) {
    EXPECT_THAT(all, HasSubstr(command.path));
    EXPECT_THAT(command_help(program_, command), HasSubstr("Example:\n  " + command.example));
  }
  EXPECT_THAT(printed({"data", "--help"}), ::testing::Not(HasSubstr("train")));
  EXPECT_EQ(printed({}, 2), all);
  EXPECT_EQ(printed({"--version"}), "tool 1.2.3\n");
}

TEST_F(CommandLine, BashCompletes) {
  const std::string script = ::testing::TempDir() + "/completion_test.sh";
  std::ofstream(script) << printed({"completion", "bash"}) << R"(
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tool; echo "${COMPREPLY[*]}"; }
try tool tr
try tool data ""
try tool data pack --
try tool train --dr
try tool train --resume ""
try tool train --config x --s
)";
  FILE* pipe = popen(("bash " + script).c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output(4096, '\0');
  output.resize(fread(output.data(), 1, output.size(), pipe));
  EXPECT_EQ(pclose(pipe), 0);
  std::remove(script.c_str());
  EXPECT_EQ(output, "train\npack list --help\n--input --help\n--dry-run\nauto none\n--set --seed\n");
}

TEST(Nearest, DistanceCountsSwapsAsOne) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("layrs", "layers"), 1);
  EXPECT_EQ(edit_distance("trian", "train"), 1);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
}

TEST(Nearest, OnlyCloseNamesAreOffered) {
  EXPECT_EQ(nearest_name("tpp", {"pp", "dp", "tp"}), "tp");
  EXPECT_EQ(nearest_name("layrs", {"layer_norm", "layers"}), "layers");
  EXPECT_EQ(nearest_name("ab", {"cd"}), "");
  EXPECT_EQ(nearest_name("abc", {"xyz", "abcdef"}), "");
}

}  // namespace
}  // namespace transxssm
