// Waiting for ranks that work on something else than communication, and groups of many ranks.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "parallel/local.h"
#include "parallel/mesh.h"
#include "runtime/sanitizers.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Work, IsWaitedForLongerThanTheTimeLimit) {
  for (const auto& [n, slow] : {std::pair{1, 0}, {2, 1}, {8, 0}, {8, 7}}) {
    std::atomic<int> done{0};
    run_as_ranks(n, [&, n = n, slow = slow](Communicator& world) {
      world.set_timeout(milliseconds(1500 * kSlower));
      const auto file = [&] {
        std::this_thread::sleep_for(milliseconds(world.rank() == slow ? 3300 * kSlower : 1));
        ++done;
      };
      // Ranks without work, with short work, and the slow one.
      const bool works = world.rank() == slow || world.rank() % 2 == 0;
      world.work("save", works ? std::function<void()>(file) : nullptr);
      EXPECT_EQ(done, (n + 1) / 2 + (slow % 2));
      world.barrier();  // nothing of it is left
    });
  }
}

TEST(Work, AndCollectivesInTurn) {
  run_as_ranks(5, [](Communicator& world) {
    for (int i = 0; i < 100; ++i) {
      world.work("work", world.rank() == i % 5 ? [] {} : std::function<void()>());
      double x = 1;
      world.all_reduce(Tensor(&x, DType::f64, {1}));
      ASSERT_EQ(x, 5);
    }
  });
}

// Others work on and on; the rank that never comes is named by those next to it, within the time limit.
TEST(Work, ASilentRankIsNamed) {
  const auto start = Clock::now();
  std::string message;
  try {
    run_as_ranks(6, [](Communicator& world) {
      world.set_timeout(seconds(2));
      if (world.rank() == 2) {
        std::this_thread::sleep_for(milliseconds(4500));
        return;
      }
      world.work("save", [] { std::this_thread::sleep_for(milliseconds(3000)); });
    });
  } catch (const CommunicationError& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("in save #0 of 'world': waited 2."), std::string::npos) << message;
  EXPECT_NE(message.find("for rank 2,"), std::string::npos) << message;
  EXPECT_LT(Clock::now() - start, seconds(20));
}

TEST(Work, ThrowsWhatItThrew) {
  try {
    run_as_ranks(4, [](Communicator& world) {
      world.work("save", [&] {
        if (world.rank() == 1) throw std::runtime_error("the disk burns");
      });
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "the disk burns");
  }
}

// What a job of many ranks does before its first step, in messages a rank: their number grows with the
// logarithm.
TEST(ManyRanks, MeetInFewMessages) {
  constexpr int kRanks = 512, kRounds = 9;
  const auto start = Clock::now();
  run_as_ranks(kRanks, [&](Communicator& world) {
    world.set_timeout(seconds(100 * kSlower));
    const auto messages = [&](auto&& fn) {
      const int64_t before = world.traffic().messages;
      fn();
      return world.traffic().messages - before;
    };
    int32_t mine = world.rank();
    std::vector<int32_t> all(kRanks);
    EXPECT_LE(messages([&] {
                world.all_gather(Tensor(&mine, DType::i32, {1}), Tensor(all.data(), DType::i32, {kRanks}));
              }),
              kRounds);
    for (int r = 0; r < kRanks; ++r) ASSERT_EQ(all[static_cast<size_t>(r)], r);
    EXPECT_LE(messages([&] { world.broadcast(Tensor(&mine, DType::i32, {1}), 5); }), kRounds);
    ASSERT_EQ(mine, 5);
    EXPECT_LE(messages([&] { world.barrier(); }), kRounds);
    Mesh mesh(world, {8, 8, 1, 8});
    double sum = 1;
    mesh.model().all_reduce(Tensor(&sum, DType::f64, {1}));
    EXPECT_EQ(sum, 64);
    world.work("start", world.rank() == 0 ? [] {} : std::function<void()>());
  });
  EXPECT_LT(Clock::now() - start, seconds(60 * kSlower));
}

}  // namespace
}  // namespace transxssm
