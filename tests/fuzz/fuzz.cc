#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <google/protobuf/stubs/common.h>
#if GOOGLE_PROTOBUF_VERSION < 4022000
#include <google/protobuf/stubs/logging.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "runtime/data/utf8.h"
#include "runtime/log.h"

namespace transxssm::fuzz {
namespace {

constexpr size_t kMaxMessage = 64 << 10;

[[noreturn]] void refuse(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

class MemoryFile : public ReadableFile {
 public:
  explicit MemoryFile(const std::string& bytes) : bytes_(bytes) {}
  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }
  void read(int64_t offset, std::span<std::byte> bytes) const override {
    expect(offset >= 0 && offset <= size() && bytes.size() <= bytes_.size() - static_cast<size_t>(offset),
           "a file is read beyond its end");
    if (!bytes.empty()) std::memcpy(bytes.data(), bytes_.data() + offset, bytes.size());
  }

 private:
  const std::string& bytes_;
};

// Directory of real_file, removed at the end.
class Scratch {
 public:
  Scratch() {
    std::error_code missing;
    const bool memory = std::filesystem::is_directory("/dev/shm", missing);
    std::string pattern =
        (memory ? std::string("/dev/shm") : std::filesystem::temp_directory_path().string()) +
        "/transxssm-fuzz-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) refuse(errno, pattern);
    path = pattern;
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

// Warnings of what is accepted all the same do not fill the terminal, nor what protocol buffers write there
// of every text that is no UTF-8.
[[maybe_unused]] const bool is_quiet = [] {
  set_log_rank(1);
#if GOOGLE_PROTOBUF_VERSION < 4022000
  google::protobuf::SetLogHandler(nullptr);
#endif
  return true;
}();

std::vector<Target>& all_targets() {
  static std::vector<Target> list;
  return list;
}

}  // namespace

const std::vector<Target>& targets() {
  return all_targets();
}

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

bool add_target(Target target) {
  std::vector<Target>& list = all_targets();
  list.insert(std::upper_bound(list.begin(), list.end(), target,
                               [](const Target& a, const Target& b) { return a.name < b.name; }),
              std::move(target));
  return true;
}

void expect(bool holds, std::string_view what) {
  if (!holds) throw Fault{std::string(what)};
}

void check_refusal(const Error& error) {
  const std::string_view what = error.what();
  expect(error.code() != ExitCode::internal, "an input leads to exit code 1: " + std::string(what));
  expect(what.size() <= kMaxMessage, "a message of " + std::to_string(what.size()) + " bytes");
  expect(valid_utf8_prefix(what) == what.size(), "a message that is not UTF-8");
  for (size_t i = 0; i < what.size(); ++i) {
    const auto c = static_cast<unsigned char>(what[i]);
    const bool ascii_control = (c < 0x20 && c != '\n') || c == 0x7F;
    const bool latin_control =
        c == 0xC2 && i + 1 < what.size() && static_cast<unsigned char>(what[i + 1]) < 0xA0;
    expect(!ascii_control && !latin_control, "a message with control characters");
  }
}

bool run_target(const Target& target, std::string_view input) {
  try {
    target.run(input);
    return true;
  } catch (const Error& error) {
    check_refusal(error);
    return false;
  } catch (const std::exception& error) {
    throw Fault{std::string("an exception that is none of runtime/error.h: ") + error.what()};
  }
}

uint8_t Bytes::byte() {
  return static_cast<uint8_t>(number(1));
}

uint64_t Bytes::number(int bytes) {
  uint64_t value = 0;
  const std::string_view taken = take(static_cast<uint64_t>(bytes));
  for (size_t i = 0; i < taken.size(); ++i)
    value |= uint64_t{static_cast<unsigned char>(taken[i])} << (8 * i);
  return value;
}

std::string_view Bytes::take(uint64_t bytes) {
  const std::string_view taken =
      rest_.substr(0, static_cast<size_t>(std::min<uint64_t>(bytes, rest_.size())));
  rest_.remove_prefix(taken.size());
  return taken;
}

std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

std::string part(std::string_view bytes) {
  return little_endian(bytes.size(), 4).append(bytes);
}

std::unique_ptr<WritableFile> MemoryFiles::create(const std::string& path) {
  refuse(EROFS, path);
}
std::unique_ptr<ReadableFile> MemoryFiles::open(const std::string& path) {
  const auto found = contents.find(path);
  if (found == contents.end()) refuse(ENOENT, path);
  return std::make_unique<MemoryFile>(found->second);
}
void MemoryFiles::create_directory(const std::string& path, int) {
  refuse(EROFS, path);
}
void MemoryFiles::set_default_mode(const std::string& directory) {
  refuse(EROFS, directory);
}
void MemoryFiles::rename(const std::string& from, const std::string&) {
  refuse(EROFS, from);
}
void MemoryFiles::remove(const std::string& path) {
  refuse(EROFS, path);
}
void MemoryFiles::sync_directory(const std::string& path) {
  refuse(EROFS, path);
}
std::vector<std::string> MemoryFiles::list(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : contents)
    if (name.starts_with(path + "/")) names.push_back(name.substr(path.size() + 1));
  return names;
}
bool MemoryFiles::exists(const std::string& path) {
  return contents.contains(path) || is_directory(path);
}
bool MemoryFiles::is_directory(const std::string& path) {
  const auto next = contents.lower_bound(path + "/");
  return next != contents.end() && next->first.starts_with(path + "/");
}
int64_t MemoryFiles::free_bytes(const std::string&) {
  return 0;
}

std::string real_file(const std::string& name, std::string_view bytes) {
  static const Scratch scratch;
  const std::string path = scratch.path + "/" + name;
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) refuse(errno, path);
  const ssize_t written = ::write(file, bytes.data(), bytes.size());
  ::close(file);
  expect(written == static_cast<ssize_t>(bytes.size()), "no room for " + path);
  return path;
}

}  // namespace transxssm::fuzz
