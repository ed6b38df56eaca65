// The choice of a device, and the error of each wrong one.
#include "launch/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/guarded_device.h"

namespace transxssm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

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

}  // namespace
}  // namespace transxssm
