#include "runtime/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace transxssm {

AppendFile::AppendFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) error_ = std::strerror(errno);
}

AppendFile::~AppendFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool AppendFile::append(std::string_view bytes) {
  if (descriptor_ < 0) return false;
  struct stat before {};
  if (::fstat(descriptor_, &before) != 0) {
    error_ = std::strerror(errno);
    return false;
  }
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      error_ = std::strerror(written < 0 ? errno : ENOSPC);
      // Half a record would make all that follow unreadable. Not every file can be cut (a pipe, a device).
      [[maybe_unused]] const int cut = ::ftruncate(descriptor_, before.st_size);
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

bool AppendFile::ends_inside_line() const {
  struct stat now {};
  if (descriptor_ < 0 || ::fstat(descriptor_, &now) != 0 || !S_ISREG(now.st_mode) || now.st_size == 0) {
    return false;
  }
  char last = '\n';
  return ::pread(descriptor_, &last, 1, now.st_size - 1) == 1 && last != '\n';
}

}  // namespace transxssm
