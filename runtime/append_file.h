// A log that grows at its end. Losing a line is never worth stopping a run for: failures are returned, not
// thrown.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace transxssm {

class AppendFile {
 public:
  // Opens or creates `path`. Where that fails every append fails.
  explicit AppendFile(const std::string& path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Writes all of `bytes`, or leaves the file as it was and returns false with the reason in error().
  bool append(std::string_view bytes);

  const std::string& path() const { return path_; }
  const std::string& error() const { return error_; }
  // Whether the file holds an unfinished line, as a process killed while it wrote leaves behind.
  bool ends_inside_line() const;

 private:
  std::string path_;
  std::string error_;
  int descriptor_ = -1;
};

}  // namespace transxssm
