#include "parallel/deadline.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace transxssm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Deadline, EndsTheProcessAndSaysWhatItWasAt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const Deadline deadline("reading", milliseconds(20), 9);
        sleep(60);
      },
      testing::ExitedWithCode(9), "waited 0 s in reading; it ends by itself \\(exit code 9\\)");
  { const Deadline met("nothing", seconds(60)); }
}

// A process of that name, and one that it starts and that ends at once.
pid_t launcher(const char* name) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_NAME, name);
  if (fork() == 0) {
    end_launcher_later(seconds(1));
    _exit(7);
  }
  sleep(4);
  _exit(0);
}

TEST(Deadline, ALauncherThatStaysIsEnded) {
  const pid_t daemon = launcher("orted"), mpirun = launcher("mpirun"), other = launcher("slurmstepd");
  int status = 0;
  waitpid(daemon, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
  waitpid(mpirun, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGIO) << status;
  waitpid(other, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace transxssm
