#include "checkpoint/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "runtime/error.h"

namespace transxssm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(RunLock, SecondJobIsToldWhoHoldsIt) {
  std::string pattern = testing::TempDir() + "run_lock_test_XXXXXX";
  const std::string directory = ::mkdtemp(pattern.data());
  std::optional<RunLock> first(std::in_place, directory);
  try {
    RunLock second(directory);
    ADD_FAILURE() << "locked twice";
  } catch (const UsageError& error) {
    char host[256] = "";
    ::gethostname(host, sizeof(host) - 1);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr(directory), HasSubstr(fmt::format("process {} on host {}", ::getpid(), host)),
                      HasSubstr("since 20")));
  }
  first.reset();
  RunLock third(directory);
  std::filesystem::remove_all(directory);
}

TEST(RunLock, EndsWithItsProcess) {
  std::string pattern = testing::TempDir() + "run_lock_test_XXXXXX";
  const std::string directory = ::mkdtemp(pattern.data());
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock* lock = new RunLock(directory);
    ::_exit(lock == nullptr);  // without unlocking
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_NO_THROW(RunLock{directory});
  std::filesystem::remove_all(directory);
}

TEST(RunLock, NeedsTheDirectory) {
  EXPECT_THROW(RunLock("/nonexistent/run"), UsageError);
}

}  // namespace
}  // namespace transxssm
