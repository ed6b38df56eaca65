#include "runtime/name_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace transxssm {
namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

int open_lock(const std::string& path) {
  for (const int flags : {O_RDWR | O_CREAT, O_RDWR, O_RDONLY}) {  // the file may be another user's
    const int fd = ::open(path.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd >= 0) return fd;
    if (errno != EACCES) break;
  }
  fail(errno, "cannot create " + path);
}

// Whether the path still leads to the open file: its last holder removes it.
bool is_still(int fd, const std::string& path) {
  struct stat open_file {
  }, named{};
  return ::fstat(fd, &open_file) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

std::string holder(int fd) {
  char text[256];
  const ssize_t count = ::pread(fd, text, sizeof text, 0);
  std::string name(text, count > 0 ? static_cast<size_t>(count) : 0);
  for (char& c : name)
    if (c < ' ' || c > '~') c = '?';
  return name.empty() ? "another process" : name;
}

}  // namespace

std::string host_name() {
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) != 0) return "host";
  std::string name;
  for (const char* c = host; *c != '\0' && name.size() < 64; ++c) {
    const bool plain = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z');
    name += plain || *c == '.' || *c == '-' ? *c : '-';
  }
  return name.empty() ? "host" : name;
}

NameLock::NameLock(const std::string& path) : path_(path) {
  for (;;) {
    fd_ = open_lock(path_);
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      const std::string name = holder(fd_);
      ::close(fd_);
      fd_ = -1;
      if (error == EWOULDBLOCK) fail(error, name);
      ::unlink(path_.c_str());
      return;
    }
    if (is_still(fd_, path_)) break;
    ::close(fd_);
  }
  unfinished_ = std::make_unique<UnfinishedFile>(path_);
  const std::string self = fmt::format("process {} on host {}", ::getpid(), host_name());
  // Without its text the lock holds all the same.
  if (::ftruncate(fd_, 0) == 0) (void)!::pwrite(fd_, self.data(), self.size(), 0);
}

NameLock::~NameLock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());  // while it is held: nobody else can hold this file now or later
  ::close(fd_);
}

}  // namespace transxssm
