#include "parallel/deadline.h"

#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace transxssm {
namespace {

// $0 is the launcher's process, $1 the patience in seconds. Names are those of Open MPI 4, and 5 (prted). Its
// children go too: ssh to the host that is cut off, which would stay and hold the launcher's output open.
constexpr char kEndLauncher[] = R"(
cd /
read -r name <"/proc/$0/comm"
case $name in
  orted* | prted*) signal=TERM ;;
  mpirun* | mpiexec* | orterun* | prterun*) signal=IO ;;
  *) exit ;;
esac
left=$1
while [ "$left" -gt 0 ]; do
  sleep 1
  kill -0 "$0" || exit
  left=$((left - 1))
done
kill $(cat "/proc/$0/task/"*/children)
kill -$signal "$0"
)";

}  // namespace

Deadline::Deadline(std::string what, std::chrono::nanoseconds limit, int exit_code)
    : what_(std::move(what)), limit_(limit), exit_code_(exit_code), thread_([this] { watch(); }) {}

Deadline::~Deadline() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Deadline::watch() {
  std::unique_lock lock(mutex_);
  if (changed_.wait_for(lock, limit_, [this] { return over_; })) return;
  end_launcher_later();
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  std::fprintf(stderr,
               "transxssm: process %d on host %s waited %.0f s in %s; it ends by itself (exit code %d)\n",
               static_cast<int>(getpid()), host, std::chrono::duration<double>(limit_).count(), what_.c_str(),
               exit_code_);
  std::fflush(stderr);
  _exit(exit_code_);
}

void end_launcher_later(std::chrono::seconds patience) {
  // A session of its own, since mpirun ends this process's group; no open file of this process, since mpirun
  // waits for the end of its output.
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t files;
  if (posix_spawnattr_init(&attributes) != 0 || posix_spawn_file_actions_init(&files) != 0) return;
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  for (int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    posix_spawn_file_actions_addopen(&files, stream, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  std::string shell = "sh", option = "-c", script = kEndLauncher, launcher = std::to_string(getppid()),
              seconds = std::to_string(patience.count());
  char* const arguments[] = {shell.data(),    option.data(),  script.data(),
                             launcher.data(), seconds.data(), nullptr};
  pid_t pid = 0;
  posix_spawn(&pid, "/bin/sh", &files, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
}

}  // namespace transxssm
