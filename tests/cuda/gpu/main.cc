// The test program of a real GPU, cuda:0. Without one it ends with 77, which ctest counts as skipped.
#include <gtest/gtest.h>

#include <cstdio>

#include "runtime/device.h"
#include "tests/cuda/device.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  transxssm::use_cuda_for_tests();
  if (!testing::GTEST_FLAG(list_tests)) {
    if (!transxssm::has_device()) {
      std::fprintf(stderr, "skipped: no GPU that a driver serves\n");
      return 77;
    }
    std::printf("cuda:0 is %s\n", transxssm::device_runtime().describe(0).c_str());
  }
  return RUN_ALL_TESTS();
}
