// Hundreds of ranks that fail together: processes, as they are in a job, without MPI.
#include "launch/failure_report.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "launch/progress.h"
#include "runtime/error.h"
#include "runtime/log.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int kRanks = 512;

struct Outcome {
  int code = -1;                    // with which the first rank ended the job
  double seconds = 0;               // until then
  std::vector<std::string> errors;  // lines on the terminal, without time stamps
};

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// All ranks fail at once; the first that returns ends the others, as MPI_Abort does.
Outcome fail_together(const std::string& directory, const std::string& log,
                      const std::function<Failure(int rank)>& failure, int size = kRanks) {
  const std::string terminal = directory + "/terminal";
  int start[2];
  EXPECT_EQ(pipe(start), 0);
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = fork();
    if (pid != 0) {
      ranks.push_back(pid);
      continue;
    }
    close(start[1]);
    dup2(open(terminal.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644), STDERR_FILENO);
    set_log_rank(rank);
    if (!log.empty()) open_progress(log, rank, size);
    publish_progress(7, "train");
    char byte = 0;
    [[maybe_unused]] const ssize_t none = read(start[0], &byte, 1);  // until the other end is closed
    _exit(report_failure({.rank = rank,
                          .size = size,
                          .host = "node" + std::to_string(rank / 8),
                          .failure = failure(rank),
                          .job = directory}));
  }
  close(start[0]);
  for (int i = 0; !log.empty() && i < 600 && read_progress(log, size).size() < static_cast<size_t>(size); ++i)
    usleep(100000);
  const auto begin = std::chrono::steady_clock::now();
  close(start[1]);
  Outcome outcome;
  int status = 0;
  const pid_t first = wait(&status);
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  for (pid_t rank : ranks)
    if (rank != first) kill(rank, SIGKILL);
  while (wait(nullptr) > 0) {
  }
  std::istringstream text(contents(terminal));
  for (std::string line; std::getline(text, line);)
    outcome.errors.push_back(line.substr(std::min<size_t>(9, line.size())));
  return outcome;
}

// Seconds a report may take: one to collect, and the rest for hundreds of processes to get the processor.
constexpr double kLimit = 30;

TEST(FailureReport, TheSameErrorOfAllRanksIsOneLine) {
  const TemporaryDirectory directory;
  const Outcome outcome = fail_together(directory.path(), directory.path(), [](int) {
    return Failure{3, "train.bin: token 280 at position 5 is beyond the vocabulary"};
  });
  EXPECT_EQ(outcome.code, 3);
  EXPECT_LT(outcome.seconds, kLimit);
  ASSERT_EQ(outcome.errors.size(), 1u) << outcome.errors[1];
  EXPECT_THAT(outcome.errors[0], StartsWith("error: rank "));
  EXPECT_THAT(outcome.errors[0], HasSubstr(" others: train.bin: token 280"));
  EXPECT_THAT(outcome.errors[0], HasSubstr("exit code 3)"));
  EXPECT_EQ(contents(directory.path() + "/failure.txt"), outcome.errors[0].substr(7) + "\n");
}

// What one rank met goes before what the others waited for; the table comes once.
TEST(FailureReport, TheCauseGoesFirst) {
  const TemporaryDirectory directory;
  const Outcome outcome = fail_together(directory.path(), directory.path(), [&](int rank) {
    if (rank == 77) return Failure{6, "the loss is nan"};
    while (access((directory / "failure.txt").c_str(), F_OK) != 0) usleep(10000);  // they learn of it later
    return Failure{7, "Rank " + std::to_string(rank) + " in barrier #4 of 'dp': waited 5.0 s for rank 77"};
  });
  EXPECT_EQ(outcome.code, 6);
  EXPECT_LT(outcome.seconds, kLimit);
  EXPECT_LE(outcome.errors.size(),
            24u);  // at most 16 lines of the table, 8 messages and the count of the rest
  const auto count = [&](const std::string& text) {
    return std::count_if(outcome.errors.begin(), outcome.errors.end(),
                         [&](const std::string& line) { return line.find(text) != std::string::npos; });
  };
  EXPECT_EQ(count("the loss is nan"), 1);
  EXPECT_EQ(count("rank 77: the loss is nan (on "), 1);
  EXPECT_EQ(count(", exit code 6)"), 1);
  EXPECT_LE(count("what every rank did last"), 1);
  EXPECT_LE(count("exit code 7"), 1);
}

// A rank of a host that is cut off has made the report, and its end reaches nobody here.
TEST(FailureReport, OneRankOfEachHostSpeaksWhereAReportEndsNothing) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "failure.txt") << "elsewhere\n";
  const Outcome outcome = fail_together(
      directory.path(), directory.path(),
      [](int rank) {
        return Failure{7, "Rank " + std::to_string(rank) + " in barrier #4 of 'dp': waited 5.0 s for rank 9"};
      },
      4);
  EXPECT_EQ(outcome.code, 7);
  EXPECT_LT(outcome.seconds, kLimit);
  ASSERT_FALSE(outcome.errors.empty());
  EXPECT_THAT(outcome.errors.back(), HasSubstr("rank 0 and 3 others: in barrier #4"));
  EXPECT_THAT(contents(directory / "failure-node0.txt"), HasSubstr("rank 0 and 3 others: in barrier #4"));
  EXPECT_EQ(contents(directory / "failure.txt"), "elsewhere\n");
}

// Before there is a run directory one rank of the host speaks.
TEST(FailureReport, WithoutARunDirectoryOneRankOfAHostSpeaks) {
  const TemporaryDirectory directory;
  const Outcome outcome = fail_together(directory.path(), "", [](int) {
    return Failure{2, "no such field"};
  });
  EXPECT_EQ(outcome.code, 2);
  EXPECT_LT(outcome.seconds, kLimit);
  ASSERT_EQ(outcome.errors.size(), 1u);
  EXPECT_THAT(outcome.errors[0], HasSubstr("no such field"));
}

}  // namespace
}  // namespace transxssm
