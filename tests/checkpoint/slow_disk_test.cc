// Ranks that have nothing to write wait for those on a slow disk, however long that takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "tests/checkpoint/toy_run.h"
#include "tests/support/fault_file_system.h"

namespace transxssm {
namespace {

using std::chrono::milliseconds;

const std::string kDir = "/run/checkpoints";

TEST(SlowDisk, NobodyGivesUp) {
  Disk disk;
  std::atomic<int> done{0};
  const auto begin = std::chrono::steady_clock::now();
  run_as_ranks(4, [&](Communicator& comm) {
    comm.set_timeout(milliseconds(500));
    FaultFileSystem files(disk);
    if (comm.rank() == 0) files.slow_down(milliseconds(40));
    check_writable(comm, files, kDir, 1000);
    for (int64_t step = 1; step <= 3; ++step) {
      ToyRank rank(comm.rank(), comm.size(), 0);
      rank.fill(step);
      save_checkpoint(comm, files, kDir, toy_state(step), toy_text(), rank.tensors, {.keep_last = 2});
    }
    const auto chosen = newest_checkpoint(comm, files, kDir, Fallback::previous);
    ASSERT_TRUE(chosen.has_value());
    ToyRank rank(comm.rank(), comm.size(), 1);
    load_checkpoint(comm, files, *chosen, rank.tensors);
    done += rank.differences(3) == 0;
  });
  EXPECT_EQ(done, 4);
  EXPECT_GT(std::chrono::steady_clock::now() - begin, milliseconds(3000));  // else it proves nothing
}

// Of hardly anything, on many ranks.
TEST(ManyRanks, SaveAndLoadInSeconds) {
  constexpr int kRanks = 64;
  Disk disk;
  std::atomic<int> done{0};
  const auto begin = std::chrono::steady_clock::now();
  run_as_ranks(kRanks, [&](Communicator& comm) {
    comm.set_timeout(std::chrono::seconds(100));
    FaultFileSystem files(disk);
    ToyRank rank(comm.rank(), comm.size(), 0);
    rank.fill(1);
    const int64_t before = comm.traffic().messages;
    const std::string path = save_checkpoint(comm, files, kDir, toy_state(1), toy_text(), rank.tensors);
    // In log2(64) = 6 messages each, but a few sums that meet on the last ranks.
    const int64_t sent = comm.traffic().messages - before;
    if (comm.rank() < comm.size() / 2) {
      EXPECT_LT(sent, 63);
    }
    ToyRank other(comm.rank(), comm.size(), 1);
    load_checkpoint(comm, files, path, other.tensors);
    done += other.differences(1) == 0;
  });
  EXPECT_EQ(done, kRanks);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

}  // namespace
}  // namespace transxssm
