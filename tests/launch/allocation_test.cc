// No allocation in the step: after the first two, steps take no memory for tensors, from arenas or otherwise.
#include <gtest/gtest.h>
#include <malloc.h>

#include "launch/benchmark.h"
#include "launch/benchmark_steps.h"

namespace transxssm {
namespace {

struct Case {
  const char* preset;
  const char* dtype;
  int threads;
};

std::string name_of(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.preset + std::string("_") + info.param.dtype;
  std::erase(name, '-');
  return name;
}

class Allocation : public testing::TestWithParam<Case> {};

TEST_P(Allocation, StepsAfterTheFirstTwoTakeNoMemory) {
  const Case& c = GetParam();
  // An activation here takes more than that, so that a vector of one would be fresh pages at each call.
  constexpr int kFreshAbove = 64 << 10;
  constexpr int64_t kMostFresh = 128 << 10;
  mallopt(M_MMAP_THRESHOLD, kFreshAbove);
  const bool counts_pages = mallinfo2().uordblks > 0;  // a sanitizer's allocator keeps what was freed

  const TrainConfig config =
      benchmark_config({c.preset, 2, 128, c.dtype},
                       {"model.vocab_size=512", "model.num_layers=2", "model.d_model=256",
                        "model.num_heads=4", "model.chunk=64", "parallel.microbatch_size=1"},
                       1);
  Worker worker;
  Stream stream(c.threads);
  TimedTraining training(config, worker, stream);
  training.step();
  training.step();
  const AllocationCounter counter;
  constexpr int kSteps = 3;
  for (int i = 0; i < kSteps; ++i) training.step();
  const StepAllocations taken = counter.count();
  EXPECT_EQ(taken.arenas, 0);
  EXPECT_EQ(taken.arena_bytes, 0);
  if (counts_pages) {
    EXPECT_LE(taken.fresh_bytes, kMostFresh);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Allocation,
                         testing::Values(Case{"tiny", "f32", 2}, Case{"tiny", "bf16", 2},
                                         Case{"llama-tiny", "f32", 1}, Case{"llama-tiny", "bf16", 2},
                                         Case{"mamba2-320m", "f32", 1}, Case{"mamba2-320m", "bf16", 1}),
                         name_of);

// The counters see what a step would take.
TEST(AllocationCounter, SeesArenasAndFreshPages) {
  constexpr int64_t kBytes = 8 << 20;
  const AllocationCounter counter;
  { const Arena arena(kBytes); }
  EXPECT_EQ(counter.count().arenas, 1);
  EXPECT_EQ(counter.count().arena_bytes, kBytes);
  EXPECT_GT(counter.count().fresh_bytes, 0) << "how much depends on the size of pages";
}

}  // namespace
}  // namespace transxssm
