// Every seed and every past finding through its target: as fast, and in as little memory, as its size allows.
#include <gtest/gtest.h>

#include "tests/fuzz/inputs.h"

namespace transxssm::fuzz {
namespace {

class Replay : public testing::TestWithParam<Target> {};

TEST_P(Replay, HoldsForSeedsAndFindings) {
  const Target& target = GetParam();
  std::vector<StoredInput> inputs = stored_inputs("seeds", target.name);
  ASSERT_FALSE(inputs.empty()) << "no seeds in tests/fuzz/seeds/" << target.name;
  for (StoredInput& finding : stored_inputs("findings", target.name)) inputs.push_back(std::move(finding));
  bool accepted = false, ignored = false;
  run_target(target, "");  // tables that are made once
  for (const StoredInput& input : inputs) {
    const bool is_seed = input.path.find("/seeds/") != std::string::npos;
    EXPECT_EQ(problem_of(target, input.bytes, is_seed ? accepted : ignored), "") << input.path;
  }
  EXPECT_TRUE(accepted) << "no seed is accepted: what follows the first refusal is not tested";
}

INSTANTIATE_TEST_SUITE_P(Targets, Replay, testing::ValuesIn(targets()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace transxssm::fuzz
