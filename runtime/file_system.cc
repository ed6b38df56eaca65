#include "runtime/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace transxssm {
namespace {

[[noreturn]] void fail(int error, const char* operation, const std::string& path) {
  throw std::system_error(error, std::generic_category(), std::string(operation) + " " + path);
}

// Repeats a call that a signal interrupted.
template <class Call>
auto retry(Call&& call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  void write(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = retry([&] { return ::write(fd_.get(), bytes.data(), bytes.size()); });
      if (written < 0) fail(errno, "cannot write", path_);
      if (written == 0) fail(EIO, "cannot write", path_);
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }

  // After a failure the kernel may have dropped the dirty pages: a second fsync of this file would report
  // success for data that is lost. Callers give the file up.
  void sync() override {
    if (retry([&] { return ::fsync(fd_.get()); }) != 0) fail(errno, "cannot sync", path_);
  }

  // The descriptor is gone even where close fails, so EINTR is no reason to try again.
  void close() override {
    const int fd = fd_.release();
    if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) fail(errno, "cannot close", path_);
  }

 private:
  Descriptor fd_;
  std::string path_;
};

class PosixReadableFile : public ReadableFile {
 public:
  PosixReadableFile(int fd, std::string path, int64_t size) : fd_(fd), path_(std::move(path)), size_(size) {}
  int64_t size() const override { return size_; }

  void read(int64_t offset, std::span<std::byte> bytes) const override {
    while (!bytes.empty()) {
      const ssize_t got = retry([&] { return ::pread(fd_.get(), bytes.data(), bytes.size(), offset); });
      if (got < 0) fail(errno, "cannot read", path_);
      if (got == 0) fail(ENODATA, "unexpected end of", path_);
      bytes = bytes.subspan(static_cast<size_t>(got));
      offset += got;
    }
  }

 private:
  Descriptor fd_;
  std::string path_;
  int64_t size_;
};

// The process's umask; reading it by setting it would race with other threads that make files.
mode_t current_umask() {
  static const mode_t mask = [] {
    const mode_t old = ::umask(022);
    ::umask(old);
    return old;
  }();
  return mask;
}

class PosixFileSystem : public FileSystem {
 public:
  PosixFileSystem() { current_umask(); }

  std::unique_ptr<WritableFile> create(const std::string& path) override {
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    const int fd = retry([&] { return ::open(path.c_str(), flags, 0666); });
    if (fd < 0) fail(errno, "cannot create", path);
    return std::make_unique<PosixWritableFile>(fd, path);
  }

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    // Without O_NONBLOCK a named pipe would block here for ever.
    const int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
    Descriptor fd(retry([&] { return ::open(path.c_str(), flags); }));
    if (fd.get() < 0) fail(errno, "cannot open", path);
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) fail(errno, "cannot stat", path);
    if (S_ISDIR(status.st_mode)) fail(EISDIR, "cannot open", path);
    if (!S_ISREG(status.st_mode)) fail(EINVAL, "not a regular file:", path);
    return std::make_unique<PosixReadableFile>(fd.release(), path, status.st_size);
  }

  void create_directory(const std::string& path, int mode) override {
    if (::mkdir(path.c_str(), static_cast<mode_t>(mode)) != 0) fail(errno, "cannot make directory", path);
  }

  void set_default_mode(const std::string& directory) override {
    if (::chmod(directory.c_str(), 0777 & ~current_umask()) != 0)
      fail(errno, "cannot set the mode of", directory);
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail(errno, "cannot rename", from + " to " + to);
  }

  void remove(const std::string& path) override {
    if (::unlink(path.c_str()) == 0) return;
    const int error = errno;
    if ((error == EISDIR || error == EPERM) && ::rmdir(path.c_str()) == 0) return;
    fail(error == EISDIR ? errno : error, "cannot remove", path);
  }

  void sync_directory(const std::string& path) override {
    Descriptor fd(retry([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (fd.get() < 0) fail(errno, "cannot open directory", path);
    if (retry([&] { return ::fsync(fd.get()); }) != 0) fail(errno, "cannot sync directory", path);
  }

  std::vector<std::string> list(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
    if (directory == nullptr) fail(errno, "cannot list", path);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) fail(errno, "cannot list", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  bool exists(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) == 0) return true;
    if (errno != ENOENT && errno != ENOTDIR) fail(errno, "cannot stat", path);
    return false;
  }

  bool is_directory(const std::string& path) override {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) return S_ISDIR(status.st_mode);
    if (errno != ENOENT && errno != ENOTDIR) fail(errno, "cannot stat", path);
    return false;
  }

  int64_t free_bytes(const std::string& path) override {
    struct statvfs status {};
    if (retry([&] { return ::statvfs(path.c_str(), &status); }) != 0)
      fail(errno, "cannot read the free space of", path);
    int64_t bytes = 0;
    if (__builtin_mul_overflow(status.f_bavail, status.f_frsize, &bytes)) bytes = INT64_MAX;
    return bytes;
  }
};

std::string parent_of(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  const size_t slash = end == std::string::npos ? std::string::npos : path.rfind('/', end);
  if (slash == std::string::npos) return end == std::string::npos ? "/" : ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

FileSystem& posix_file_system() {
  static PosixFileSystem files;
  return files;
}

std::string read_file(FileSystem& files, const std::string& path, int64_t max_bytes) {
  const auto file = files.open(path);
  if (file->size() > max_bytes) fail(EFBIG, "more than the allowed size:", path);
  std::string text(static_cast<size_t>(file->size()), '\0');
  file->read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void write_new_file(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(std::as_bytes(std::span(text.data(), text.size())));
  file->sync();
  file->close();
}

void write_file_atomically(FileSystem& files, const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  if (files.exists(temporary)) files.remove(temporary);  // of an earlier crash
  try {
    write_new_file(files, temporary, text);
    files.rename(temporary, path);
  } catch (const std::system_error&) {
    try {
      files.remove(temporary);
    } catch (const std::system_error&) {  // the first error is the one to report
    }
    throw;
  }
  files.sync_directory(parent_of(path));
}

void create_directories(FileSystem& files, const std::string& path) {
  if (files.is_directory(path)) return;
  const std::string parent = parent_of(path);
  if (parent != path) create_directories(files, parent);
  try {
    files.create_directory(path, 0777);
  } catch (const std::system_error&) {
    if (!files.is_directory(path)) throw;  // else another process was faster
  }
  files.sync_directory(parent);
}

void remove_all(FileSystem& files, const std::string& path) {
  try {
    files.remove(path);
    return;
  } catch (const std::system_error& error) {
    if (error.code().value() != ENOTEMPTY && error.code().value() != EEXIST) throw;
  }
  for (const std::string& name : files.list(path)) remove_all(files, path + "/" + name);
  files.remove(path);
}

}  // namespace transxssm
