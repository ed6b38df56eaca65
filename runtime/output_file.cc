#include "runtime/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr size_t kLongestStem = 100;  // of a name in the names made from it; names end at 255 bytes

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_of(const std::string& path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

std::string stem_of(const std::string& path) {
  const std::string name = name_of(path);
  return name.size() <= kLongestStem ? name : fmt::format("{:016x}", std::hash<std::string>()(name));
}

std::string beside(const std::string& path, const std::string& name) {
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + name;
}

// Open files of this process, which a rename would replace by a file.
bool is_descriptor(const std::string& path) {
  return path == "/dev/stdout" || path == "/dev/stderr" || path.starts_with("/dev/fd/") ||
         path.starts_with("/proc/self/fd/");
}

bool is_same(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Calls work() and turns what the system refuses into the error of an output.
template <class Work>
auto writing(const std::string& target, Work&& work) {
  try {
    return work();
  } catch (const std::system_error& error) {
    throw OutputError("{} cannot be written: {}; nothing was put in its place.", target, error.what());
  }
}

class OutputWriter final : public WritableFile {
 public:
  OutputWriter(std::unique_ptr<WritableFile> file, std::string target)
      : file_(std::move(file)), target_(std::move(target)) {}
  void write(std::span<const std::byte> bytes) override {
    writing(target_, [&] { file_->write(bytes); });
  }
  void sync() override {
    writing(target_, [&] { file_->sync(); });
  }
  void close() override {
    writing(target_, [&] { file_->close(); });
  }

 private:
  std::unique_ptr<WritableFile> file_;
  std::string target_;
};

// A device or pipe: there is nothing to sync, and nothing to replace.
class InPlaceWriter final : public WritableFile {
 public:
  explicit InPlaceWriter(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail();
  }
  ~InPlaceWriter() override {
    if (fd_ >= 0) ::close(fd_);
  }
  void write(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno != EINTR) fail();
      if (count > 0) bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }
  void sync() override {}
  void close() override {
    if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw std::system_error(errno, std::generic_category(), "cannot write " + path_);
  }
  std::string path_;
  int fd_;
};

}  // namespace

OutputFiles::OutputFiles(FileSystem& files, std::vector<std::string> targets, OutputRules rules)
    : files_(files), rules_(std::move(rules)) {
  TRANSXSSM_CHECK(!targets.empty(), "no output");
  for (std::string& target : targets) {
    struct stat info {};
    const bool single = targets.size() == 1;
    const bool in_place =
        single && (is_descriptor(target) ||
                   (::stat(target.c_str(), &info) == 0 && (S_ISCHR(info.st_mode) || S_ISFIFO(info.st_mode))));
    check(target, in_place);
    std::string temporary = in_place ? target : "";
    outputs_.push_back({std::move(target), std::move(temporary), in_place});
  }
  for (Output& output : outputs_) {
    if (output.in_place) continue;
    lock(output);
    output.temporary = new_temporary(output.target);
  }
}

OutputFiles::~OutputFiles() {
  for (const std::string& path : temporaries_) {
    try {
      if (files_.exists(path)) remove_all(files_, path);
    } catch (const std::exception&) {  // a later job with this output removes it
    }
  }
}

void OutputFiles::check(const std::string& target, bool in_place) const {
  if (name_of(target).empty() || name_of(target) == "." || name_of(target) == "..")
    throw UsageError("\"{}\" is no name of a file to write.", target);
  struct stat link {
  }, info{};
  const bool exists = ::lstat(target.c_str(), &link) == 0;
  if (!exists && errno == ENAMETOOLONG)
    throw UsageError("{} cannot be written: {}.", target, std::strerror(ENAMETOOLONG));
  if (!exists) return;
  const bool leads = ::stat(target.c_str(), &info) == 0;  // false: a link to nothing
  struct stat parent {};
  const bool has_parent = ::stat(directory_of(target).c_str(), &parent) == 0;
  for (const std::string& input : rules_.inputs) {
    struct stat read {};
    if (::stat(input.c_str(), &read) != 0) continue;
    if ((leads && is_same(info, read)) || (S_ISDIR(read.st_mode) && has_parent && is_same(parent, read)))
      throw UsageError("{} is read by this command ({}) and would be replaced; choose another output.",
                       target, input);
  }
  if (in_place) return;
  if (leads && S_ISDIR(info.st_mode))
    throw UsageError("{} is a directory; choose another name for the output.", target);
  if (leads && !S_ISREG(info.st_mode))
    throw UsageError("{} is not a regular file; choose another output.", target);
  if (!rules_.overwrite)
    throw UsageError("{} exists; choose another output, or pass --overwrite to replace it.", target);
}

void OutputFiles::lock(const Output& output) {
  const std::string directory = directory_of(output.target), stem = stem_of(output.target);
  try {
    locks_.push_back(std::make_unique<NameLock>(beside(output.target, fmt::format(".{}.lock", stem))));
    if (!locks_.back()->held()) return;
    // With the lock in hand, temporary files of this name and host are those of a process that was killed.
    const std::string start = fmt::format(".{}.{}-", stem, host_name());
    for (const std::string& name : files_.list(directory))
      if (name.starts_with(start) && name.ends_with(".tmp")) remove_all(files_, beside(output.target, name));
  } catch (const std::system_error& error) {
    const int code = error.code().value();
    if (code == EWOULDBLOCK) {
      std::string holder = error.what();
      holder = holder.substr(0, holder.rfind(": "));
      throw UsageError("{} is being written by {}; wait for it, or choose another output.", output.target,
                       holder);
    }
    struct stat info {};
    if (::stat(directory.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
      throw UsageError("{} cannot be written: there is no directory {}; make it first (mkdir -p).",
                       output.target, directory);
    throw UsageError("{} cannot be written: the directory {} takes no new file ({}); choose another output.",
                     output.target, directory, std::strerror(code));
  }
}

std::string OutputFiles::new_temporary(const std::string& target) {
  static std::random_device chance;
  const uint64_t number = uint64_t{chance()} << 32 | chance();
  std::string path =
      beside(target, fmt::format(".{}.{}-{}-{:016x}.tmp", stem_of(target), host_name(), ::getpid(), number));
  temporaries_.push_back(path);
  unfinished_.push_back(std::make_unique<UnfinishedFile>(path));
  return path;
}

std::string OutputFiles::scratch() {
  return new_temporary(outputs_.front().target);
}

std::unique_ptr<WritableFile> OutputFiles::create(const std::string& temporary) {
  const auto found = std::find_if(outputs_.begin(), outputs_.end(),
                                  [&](const Output& output) { return output.temporary == temporary; });
  const Output& output = found == outputs_.end() ? outputs_.front() : *found;
  return writing(output.target, [&]() -> std::unique_ptr<WritableFile> {
    std::unique_ptr<WritableFile> file;
    if (output.in_place)
      file = std::make_unique<InPlaceWriter>(output.target);
    else
      file = files_.create(temporary);
    return std::make_unique<OutputWriter>(std::move(file), output.target);
  });
}

void OutputFiles::sync_directories() {
  std::set<std::string> directories;
  for (const Output& output : outputs_) directories.insert(directory_of(output.target));
  for (const std::string& directory : directories) files_.sync_directory(directory);
}

void OutputFiles::publish() {
  if (outputs_.front().in_place) return;
  const Output& last = outputs_.back();
  if (!rules_.overwrite) {
    for (const Output& output : outputs_)
      if (writing(output.target, [&] { return files_.exists(output.target); }))
        throw OutputError(
            "{} has come up since this command began; it was left as it is, nothing was written.",
            output.target);
  }
  std::vector<std::string> moved;
  const auto move = [&](const Output& output) {
    files_.rename(output.temporary, output.target);
    moved.push_back(output.target);
  };
  try {
    if (outputs_.size() > 1 && files_.exists(last.target)) {
      files_.remove(last.target);
      sync_directories();
    }
    for (const Output& output : outputs_) {
      if (&output == &last && outputs_.size() > 1) sync_directories();
      move(output);
    }
    sync_directories();
  } catch (const std::system_error& error) {
    // Without the last one the others are of no use; a single file is whole.
    if (outputs_.size() > 1 && moved.size() < outputs_.size()) {
      for (const std::string& target : moved) {
        try {
          files_.remove(target);
        } catch (const std::system_error&) {  // the first error is the one to report
        }
      }
    }
    throw OutputError("{} cannot be put in place: {}.", last.target, error.what());
  }
}

void OutputFiles::publish_text(std::string_view text) {
  TRANSXSSM_CHECK(outputs_.size() == 1, "one text for {} outputs", outputs_.size());
  const auto file = create(temporary(0));
  file->write(std::as_bytes(std::span(text.data(), text.size())));
  file->sync();
  file->close();
  publish();
}

}  // namespace transxssm
