// The one seam for all file I/O that must survive crashes: tests replace it to make any call fail or to lose
// what was not synced. Errors are std::system_error with the path in what().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

// A file opened for writing.
class WritableFile {
 public:
  virtual ~WritableFile() = default;                         // closes without a check
  virtual void write(std::span<const std::byte> bytes) = 0;  // all of them
  virtual void sync() = 0;                                   // to stable storage
  virtual void close() = 0;                                  // checked
};

// A file opened for reading at any offset.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual int64_t size() const = 0;
  virtual void read(int64_t offset, std::span<std::byte> bytes) const = 0;  // all, or an error
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<WritableFile> create(const std::string& path) = 0;  // must not exist; no symlinks
  virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;    // regular files only
  virtual void create_directory(const std::string& path, int mode) = 0;       // must not exist; umask applies
  virtual void set_default_mode(const std::string& directory) = 0;            // 0777 less the umask
  virtual void rename(const std::string& from, const std::string& to) = 0;  // replaces files, not directories
  virtual void remove(const std::string& path) = 0;                         // a file or an empty directory
  virtual void sync_directory(const std::string& path) = 0;
  virtual std::vector<std::string> list(const std::string& path) = 0;  // names, sorted, no "." and ".."
  virtual bool exists(const std::string& path) = 0;
  virtual bool is_directory(const std::string& path) = 0;
  virtual int64_t free_bytes(const std::string& path) = 0;  // for this user
};

FileSystem& posix_file_system();

// Helpers over the seam.
// The whole file; an error where it has more than max_bytes.
std::string read_file(FileSystem& files, const std::string& path, int64_t max_bytes);
// A new file with this text, synced and closed; the directory is not synced.
void write_new_file(FileSystem& files, const std::string& path, std::string_view text);
// Replaces `path` as a whole: temporary file beside it, sync, rename, directory sync.
void write_file_atomically(FileSystem& files, const std::string& path, std::string_view text);
// Makes what is missing of the path, each new name synced into its directory.
void create_directories(FileSystem& files, const std::string& path);
// A file, or a directory with all below it; symbolic links are removed, not followed.
void remove_all(FileSystem& files, const std::string& path);

}  // namespace transxssm
