// The test program of the emulated device. The environment variable EMULATED_DEVICE chooses how lanes take
// turns, when asynchronous copies land and whether streams wait; without it: fifo_early.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/cuda/device.h"
#include "tests/support/cuda/emulator.h"

namespace {

using transxssm::cuda::emulated::Copies;
using transxssm::cuda::emulated::Queues;
using transxssm::cuda::emulated::Schedule;
using transxssm::cuda::emulated::Settings;

bool choose(const std::string& name) {
  for (const Schedule schedule : {Schedule::fifo, Schedule::greedy, Schedule::greedy_reversed})
    for (const Copies copies : {Copies::early, Copies::late})
      for (const Queues queues : {Queues::immediate, Queues::deferred})
        if (const Settings settings{schedule, copies, queues}; to_string(settings) == name) {
          use_settings(settings);
          return true;
        }
  return false;
}

// Appends lines "kernel test" to a file after each test, for coverage.py and barriers.py.
class NoteKernels : public testing::EmptyTestEventListener {
 public:
  explicit NoteKernels(const char* file) : out_(file, std::ios::app) {}
  void OnTestStart(const testing::TestInfo&) override {
    transxssm::cuda::emulated::forget_launched_kernels();
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    std::string lines;
    for (const std::string& kernel : transxssm::cuda::emulated::launched_kernels())
      lines += kernel + " " + test.test_suite_name() + "." + test.name() + "\n";
    out_ << lines << std::flush;
  }

 private:
  std::ofstream out_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* name = std::getenv("EMULATED_DEVICE");
  if (!choose(name ? name : "fifo_early")) {
    std::fprintf(stderr,
                 "EMULATED_DEVICE=%s: write fifo, greedy or greedy_reversed, then _early or _late, then "
                 "perhaps _deferred\n",
                 name);
    return 2;
  }
  transxssm::use_cuda_for_tests();
  if (const char* file = std::getenv("EMULATED_KERNELS"))
    testing::UnitTest::GetInstance()->listeners().Append(new NoteKernels(file));
  return RUN_ALL_TESTS();
}
