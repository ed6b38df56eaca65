// A save that is killed, refused or loses power at every one of its file-system calls: the next start finds
// the old or the new checkpoint, to the bit, and can go on saving.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/checkpoint/toy_run.h"
#include "tests/support/counting_file_system.h"
#include "tests/support/fault_file_system.h"

namespace transxssm {
namespace {

using Fault = FaultFileSystem::Fault;

const std::string kDir = "/run/checkpoints";
constexpr int64_t kOld = 3;
constexpr int64_t kNew = 4;

// What the next start does: finds the newest committed checkpoint, which must be whole, and reads it back.
// Returns its step, -1 where there is none.
int64_t start_again(FileSystem& files, const std::string& directory) {
  const auto comm = single_rank();
  const auto path = newest_checkpoint(*comm, files, directory);
  if (!path) return -1;
  EXPECT_TRUE(verify_checkpoint(files, *path).empty());
  ToyRank rank(0, 1, 3);
  const LoadedCheckpoint loaded = load_checkpoint(*comm, files, *path, rank.tensors);
  EXPECT_EQ(rank.differences(loaded.state.step), 0);
  EXPECT_EQ(loaded.state, toy_state(loaded.state.step));
  EXPECT_EQ(loaded.text, toy_text());
  return loaded.state.step;
}

// And goes on: cleans up and saves.
void expect_next_save_works(FileSystem& files, const std::string& directory) {
  const auto comm = single_rank();
  remove_leftovers(files, directory);
  save_toy(*comm, files, directory, kNew + 1);
  EXPECT_EQ(start_again(files, directory), kNew + 1);
  remove_leftovers(files, directory);
  for (const std::string& name : files.list(directory)) EXPECT_NE(name[0], '.') << name;
}

class CrashTest : public testing::TestWithParam<int> {
 protected:
  // A disk with the old checkpoint, durable; the save under test keeps one checkpoint, so it also deletes.
  CrashTest() {
    FaultFileSystem files(before_);
    const auto comm = single_rank();
    save_toy(*comm, files, kDir, kOld);
  }
  struct Outcome {
    bool saved = false;
    bool fired = false;
    int64_t operations = 0;  // of the faulty rank
  };
  // Saves kNew on `ranks` ranks with the fault armed on one of them.
  static Outcome save(Disk& disk, int ranks, int faulty, Fault fault, int64_t operation, int error) {
    Outcome outcome;
    try {
      run_as_ranks(ranks, [&](Communicator& comm) {
        FaultFileSystem files(disk);
        if (comm.rank() == faulty) files.arm(fault, operation, error);
        const auto note = [&] {
          if (comm.rank() == faulty) outcome.fired = files.fired();
          if (comm.rank() == faulty) outcome.operations = files.operations();
        };
        try {
          save_toy(comm, files, kDir, kNew, 1, {1, 0, ""});
        } catch (...) {
          note();
          throw;
        }
        note();
      });
      outcome.saved = true;
    } catch (const ProcessKilled&) {
    } catch (const CheckpointSaveError&) {
    }
    return outcome;
  }

  Disk before_;
};

TEST_P(CrashTest, KilledOrPowerLostAtEveryCall) {
  const int ranks = GetParam();
  int calls = 0;
  int found_new = 0;
  for (int faulty = 0; faulty < ranks; ++faulty) {
    for (int64_t operation = 1;; ++operation) {
      Disk disk = before_;
      if (!save(disk, ranks, faulty, Fault::kill, operation, 0).fired) break;
      ++calls;
      const std::string where = fmt::format("rank {} of {} killed at call {}", faulty, ranks, operation);
      SCOPED_TRACE(where);
      {
        Disk after = disk;
        FaultFileSystem files(after);
        const int64_t step = start_again(files, kDir);
        EXPECT_TRUE(step == kOld || step == kNew) << step;
        found_new += step == kNew;
        expect_next_save_works(files, kDir);
      }
      for (uint64_t seed = 0; seed < 6; ++seed) {
        SCOPED_TRACE(fmt::format("power loss {}", seed));
        Disk after = disk;
        after.lose_power(seed == 0   ? Disk::Unsynced::dropped
                         : seed == 1 ? Disk::Unsynced::names_kept
                                     : Disk::Unsynced::random,
                         seed);
        FaultFileSystem files(after);
        const int64_t step = start_again(files, kDir);
        EXPECT_TRUE(step == kOld || step == kNew) << step;
      }
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(calls, ranks * 5);
  EXPECT_GT(found_new, 0);
  EXPECT_LT(found_new, calls);
}

TEST_P(CrashTest, ErrorAtEveryCall) {
  const int ranks = GetParam();
  int failed_saves = 0;
  for (int faulty = 0; faulty < ranks; ++faulty) {
    for (const Fault fault : {Fault::fail_once, Fault::fail_from}) {
      for (const int error : {EIO, ENOSPC}) {
        for (int64_t operation = 1;; ++operation) {
          Disk disk = before_;
          const auto [saved, fired, operations] = save(disk, ranks, faulty, fault, operation, error);
          if (operation > operations) break;
          if (!fired) continue;  // a call that a full disk does not refuse
          SCOPED_TRACE(fmt::format("rank {} of {}: {} {} at call {}", faulty, ranks, std::strerror(error),
                                   fault == Fault::fail_once ? "once" : "from then on", operation));
          failed_saves += !saved;
          // Also when the machine then loses power: what was reported as saved stays.
          for (const bool power_loss : {false, true}) {
            Disk after = disk;
            if (power_loss) after.lose_power(Disk::Unsynced::dropped);
            FaultFileSystem files(after);
            const int64_t step = start_again(files, kDir);
            EXPECT_TRUE(step == kNew || (step == kOld && !saved)) << step;
            if (!power_loss) expect_next_save_works(files, kDir);
          }
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(failed_saves, ranks * 20);
}

INSTANTIATE_TEST_SUITE_P(Ranks, CrashTest, testing::Values(1, 2));

TEST(Crash, ReplacingAStepLosesNeither) {
  for (int64_t operation = 1;; ++operation) {
    Disk disk;
    const auto comm = single_rank();
    FaultFileSystem files(disk);
    save_toy(*comm, files, kDir, kOld);
    files.arm(Fault::kill, operation);
    bool killed = false;
    try {
      save_toy(*comm, files, kDir, kOld, 1);
    } catch (const ProcessKilled&) {
      killed = true;
    }
    if (!killed) break;
    SCOPED_TRACE(operation);
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Disk after = disk;
      if (seed > 0) after.lose_power(Disk::Unsynced::random, seed);
      FaultFileSystem next(after);
      EXPECT_EQ(start_again(next, kDir), kOld);
      remove_leftovers(next, kDir);
      EXPECT_EQ(start_again(next, kDir), kOld);
    }
    if (HasFailure()) return;
  }
}

// The same with a real process and a real disk: a child that ends without a word at its k-th call.
TEST(Crash, ProcessEndsAtEveryCall) {
  std::string pattern = testing::TempDir() + "crash_test_XXXXXX";
  const std::string root = ::mkdtemp(pattern.data());
  const std::string directory = root + "/checkpoints";
  const auto comm = single_rank();
  save_toy(*comm, posix_file_system(), directory, kOld);
  constexpr int kKilled = 42;
  int found_new = 0;
  for (int64_t operation = 1;; ++operation) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      CountingFileSystem files(posix_file_system(), operation, [] { ::_exit(kKilled); });
      save_toy(*single_rank(), files, directory, kNew, 1);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    const int64_t step = start_again(posix_file_system(), directory);
    EXPECT_TRUE(step == kOld || step == kNew) << "killed at call " << operation << ": " << step;
    if (WEXITSTATUS(status) != kKilled) break;
    found_new += step == kNew;
    remove_leftovers(posix_file_system(), directory);
    std::filesystem::remove_all(directory + "/step-000000004");
    if (testing::Test::HasFailure()) break;
  }
  EXPECT_GT(found_new, 0);
  expect_next_save_works(posix_file_system(), directory);
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace transxssm
