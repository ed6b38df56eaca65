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

// Appends the kernels that ran to a file, for tests/cuda/coverage.py.
void note_kernels(const char* file) {
  std::ofstream out(file, std::ios::app);
  std::string lines;
  for (const std::string& name : transxssm::cuda::emulated::launched_kernels()) lines += name + "\n";
  out << lines << std::flush;
}

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
  const int status = RUN_ALL_TESTS();
  if (const char* file = std::getenv("EMULATED_KERNELS")) note_kernels(file);
  return status;
}
