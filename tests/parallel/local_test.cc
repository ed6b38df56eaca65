// Ranks as threads: the conformance suite, and what only threads can show.
#include "parallel/local.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>

#include "tests/parallel/communicator_suite.h"

namespace transxssm {
namespace {

class LocalConformance : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(LocalConformance, Case) {
  const auto [n, index] = GetParam();
  run_as_ranks(n, communicator_cases()[static_cast<size_t>(index)].run);
}

INSTANTIATE_TEST_SUITE_P(
    Local, LocalConformance,
    testing::Combine(testing::Values(1, 2, 3, 4, 8),
                     testing::Range(0, static_cast<int>(communicator_cases().size()))),
    [](const auto& instance) {
      return std::string(communicator_cases()[static_cast<size_t>(std::get<1>(instance.param))].name) + "_" +
             std::to_string(std::get<0>(instance.param));
    });

TEST(SingleRank, IsIdentity) {
  const auto world = single_rank();
  for (const CommunicatorCase& c : communicator_cases()) c.run(*world);
}

TEST(RunAsRanks, RethrowsTheFirstFailureAndWakesTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int> woken{0};
  try {
    run_as_ranks(4, [&](Communicator& world) {
      float x = 0;
      try {
        const auto group = world.split(0, world.rank());
        if (world.rank() == 2) throw std::runtime_error("rank 2 broke");
        group->all_reduce(Tensor(&x, DType::f32, {1}));
      } catch (const CommunicationError& error) {
        EXPECT_NE(std::string(error.what()).find("another rank failed"), std::string::npos);
        ++woken;
        throw;
      }
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 2 broke");
  }
  EXPECT_EQ(woken, 3);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

// A request dropped before its wait() leaves nothing behind for the other rank to write into.
TEST(Request, IsCancelledOnDestruction) {
  run_as_ranks(2, [](Communicator& world) {
    float dropped = 1;
    float value = world.rank() == 0 ? 5 : 0;
    const Tensor tensor(&value, DType::f32, {1});
    if (world.rank() == 1) world.receive(Tensor(&dropped, DType::f32, {1}), 0);
    world.barrier();
    Request request = world.rank() == 0 ? world.send(tensor, 1) : world.receive(tensor, 0);
    while (!request.test()) std::this_thread::yield();
    EXPECT_EQ(value, 5);
    EXPECT_EQ(dropped, 1);
  });
}

std::atomic<int> waits{0};
std::atomic<int> ends{0};

TEST(WaitObserver, SeesWhatARankWaitsFor) {
  set_wait_observer([](const WaitStatus* status) {
    if (status == nullptr) {
      ++ends;
    } else if (std::string(status->operation) == "broadcast" && std::string(status->communicator) == "seen" &&
               status->sequence == 0 && status->peer == 1) {
      ++waits;
    }
  });
  run_as_ranks(2, [](Communicator& world) {
    world.set_name("seen");
    if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    float x = 0;
    world.broadcast(Tensor(&x, DType::f32, {1}), 1);
  });
  set_wait_observer(nullptr);
  EXPECT_EQ(waits, 1);
  EXPECT_EQ(ends, 1);
}

}  // namespace
}  // namespace transxssm
