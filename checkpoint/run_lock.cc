#include "checkpoint/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

std::string read_holder(int fd) {
  char text[512];
  const ssize_t count = ::pread(fd, text, sizeof(text), 0);
  std::string holder(text, count > 0 ? static_cast<size_t>(count) : 0);
  while (!holder.empty() && holder.back() == '\n') holder.pop_back();
  return holder.empty() ? "another job" : holder;
}

std::string describe_self() {
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  return fmt::format("process {} on host {} since {:%Y-%m-%d %H:%M:%S} UTC\n", ::getpid(), host,
                     fmt::gmtime(std::time(nullptr)));
}

}  // namespace

RunLock::RunLock(const std::string& run_dir) {
  const std::string path = run_dir + "/LOCK";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd_ < 0) throw UsageError("cannot open {}: {}", path, std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    const std::string holder = read_holder(fd_);
    ::close(fd_);
    fd_ = -1;
    if (error == EWOULDBLOCK) {
      throw UsageError("{} is in use by {}: wait for it, stop it, or choose another run directory", run_dir,
                       holder);
    }
    log_warning("{} cannot be locked ({}): make sure that no other job uses this directory", path,
                std::strerror(error));
    return;
  }
  const std::string self = describe_self();
  if (::ftruncate(fd_, 0) != 0 ||
      ::pwrite(fd_, self.data(), self.size(), 0) != static_cast<ssize_t>(self.size())) {
    log_warning("cannot write {}: {}", path, std::strerror(errno));  // the lock holds all the same
  }
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace transxssm
