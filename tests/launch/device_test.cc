// The choice of a device, and the error of each wrong one.
#include "launch/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <utility>

#include "parallel/local.h"
#include "runtime/cpu_features.h"
#include "tests/support/guarded_device.h"

namespace transxssm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string complaint(const std::string& choice, ExitCode code = ExitCode::device) {
  try {
    choose_device(choice, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "";
}

TEST(DeviceChoice, WithoutABackendOnlyTheCpu) {
  EXPECT_EQ(choose_device("auto", 1), Device{});
  EXPECT_EQ(choose_device("cpu", 0), Device{});
  EXPECT_THAT(complaint("cuda"), AllOf(HasSubstr("built without CUDA"), HasSubstr("device cpu")));
}

TEST(DeviceChoice, WithoutAGpu) {
  WithGuardedDevice none(0);
  EXPECT_EQ(choose_device("auto", 0), Device{});
  EXPECT_THAT(complaint("cuda"), AllOf(HasSubstr("no GPU"), HasSubstr("device cpu")));
  EXPECT_THAT(complaint("cuda:0"), HasSubstr("no GPU"));
}

TEST(DeviceChoice, RanksOfAHostTakeItsGpusInTurn) {
  WithGuardedDevice two(2);
  const std::vector<int> expected = {0, 1, 0, 1, 0};
  for (int local_rank = 0; local_rank < 5; ++local_rank)
    for (const char* choice : {"auto", "cuda"})
      EXPECT_EQ(choose_device(choice, local_rank),
                (Device{DeviceKind::cuda, expected[static_cast<size_t>(local_rank)]}));
  EXPECT_EQ(choose_device("cuda:1", 0), (Device{DeviceKind::cuda, 1}));
  EXPECT_EQ(choose_device("cuda:0", 1), (Device{DeviceKind::cuda, 0}));
  EXPECT_EQ(choose_device("cpu", 1), Device{});
}

TEST(DeviceChoice, AWrongNumberNamesTheRightOnes) {
  {
    WithGuardedDevice two(2);
    EXPECT_THAT(complaint("cuda:2"), AllOf(HasSubstr("2 GPUs"), HasSubstr("cuda:0 to cuda:1")));
  }
  WithGuardedDevice one;
  EXPECT_THAT(complaint("cuda:1"), AllOf(HasSubstr("1 GPU;"), HasSubstr("choose cuda:0")));
}

TEST(DeviceChoice, OtherWordsAreRefused) {
  WithGuardedDevice one;
  for (const char* choice : {"gpu", "", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CPU"})
    EXPECT_THAT(complaint(choice, ExitCode::usage), HasSubstr("legal values are auto, cpu, cuda")) << choice;
}

// What `compute` becomes on the ranks whose devices these are, the same on each.
std::string settled(const std::string& compute, const std::vector<Device>& devices) {
  std::vector<std::string> found(devices.size());
  run_as_ranks(static_cast<int>(devices.size()), [&](Communicator& world) {
    const auto rank = static_cast<size_t>(world.rank());
    TrainConfig config;
    config.mutable_precision()->set_compute(compute);
    const std::string line = settle_compute(config, devices[rank], world);
    EXPECT_THAT(line, HasSubstr(config.precision().compute()));
    found[rank] = config.precision().compute();
  });
  for (const std::string& other : found) EXPECT_EQ(other, found[0]);
  return found[0];
}

// The variables of an environment that starts as `given`, and what was said of them.
std::pair<std::map<std::string, std::string>, std::string> with_fixed_sums(
    std::map<std::string, std::string> given) {
  const std::string said =
      fix_order_of_sums([&](const char* name) { return given.count(name) ? given[name].c_str() : nullptr; },
                        [&](const char* name, const char* value) { given[name] = value; });
  return {given, said};
}

TEST(FixOrderOfSums, SetsWhatIsNotSetAndSaysWhatIs) {
  using Variables = std::map<std::string, std::string>;
  const Variables wanted{{"NCCL_ALGO", "Ring"}, {"NCCL_NVLS_ENABLE", "0"}};
  EXPECT_EQ(with_fixed_sums({}), std::pair(wanted, std::string()));
  EXPECT_EQ(with_fixed_sums({{"NCCL_ALGO", "RING"}}).second, "");
  const auto [kept, said] = with_fixed_sums({{"NCCL_ALGO", "Tree"}});
  EXPECT_EQ(kept, (Variables{{"NCCL_ALGO", "Tree"}, {"NCCL_NVLS_ENABLE", "0"}}));
  EXPECT_THAT(said, AllOf(HasSubstr("precision.deterministic does not hold"),
                          HasSubstr("NCCL_ALGO=Tree instead of Ring"), Not(HasSubstr("NVLS"))));
  EXPECT_THAT(with_fixed_sums({{"NCCL_NVLS_ENABLE", "1"}}).second,
              HasSubstr("NCCL_NVLS_ENABLE=1 instead of 0"));
}

TEST(SettleCompute, AutoIsBf16WhereEveryRankHasInstructionsForIt) {
  const Device cpu, gpu{DeviceKind::cuda, 0};
  const std::string on_cpus = cpu_has_bf16() ? "bf16" : "f32";
  EXPECT_EQ(settled("auto", {gpu, gpu}), "bf16");
  EXPECT_EQ(settled("auto", {cpu}), on_cpus);
  EXPECT_EQ(settled("auto", {gpu, cpu, gpu}), on_cpus);
}

TEST(SettleCompute, WhatWasAskedForStays) {
  for (const char* compute : {"f32", "bf16"})
    for (const Device& device : {Device{}, Device{DeviceKind::cuda, 0}})
      EXPECT_EQ(settled(compute, {device}), compute);
}

}  // namespace
}  // namespace transxssm
