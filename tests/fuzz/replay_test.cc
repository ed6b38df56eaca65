// Every seed and every past finding through its target: as fast, and in as little memory, as its size allows.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/measure.h"

namespace transxssm::fuzz {
namespace {

constexpr double kMaxSeconds = 2;  // of the processor, for an input of up to a few hundred kilobytes
std::vector<std::filesystem::path> inputs(const std::string& kind, const std::string& target) {
  std::vector<std::filesystem::path> paths;
  const std::filesystem::path folder = std::filesystem::path(FUZZ_FILES) / kind / target;
  if (!std::filesystem::is_directory(folder)) return paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

class Replay : public testing::TestWithParam<Target> {};

TEST_P(Replay, HoldsForSeedsAndFindings) {
  const Target& target = GetParam();
  std::vector<std::filesystem::path> paths = inputs("seeds", target.name);
  ASSERT_FALSE(paths.empty()) << "no seeds in tests/fuzz/seeds/" << target.name;
  const auto findings = inputs("findings", target.name);
  paths.insert(paths.end(), findings.begin(), findings.end());
  run_target(target, "");  // tables that are made once
  bool accepted = false;
  for (const std::filesystem::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    const std::string input = text.str();
    const Cost cost = cost_of([&] {
      try {
        accepted = run_target(target, input) || accepted;
      } catch (const Fault& fault) {
        ADD_FAILURE() << path << ": " << fault.what;
      }
    });
    EXPECT_LT(cost.seconds, kMaxSeconds) << path;
    EXPECT_LT(cost.bytes, allowed_bytes(input.size())) << path;
  }
  EXPECT_TRUE(accepted) << "no seed is accepted: what follows the first refusal is not tested";
}

INSTANTIATE_TEST_SUITE_P(Targets, Replay, testing::ValuesIn(targets()),
                         [](const auto& test) { return test.param.name; });

}  // namespace

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

}  // namespace transxssm::fuzz
