// What every fuzz target shares. A target reads bytes of a stranger as one parser of the program does, and
// says more than "no crash": only the named errors of runtime/error.h may come out of it, their messages can
// be printed, and what was accepted and written again reads back the same. A target is one file of targets/,
// named for it:
//
//   FUZZ_TARGET(manifest, 4096) {  // inputs of up to 4096 bytes
//     const auto manifest = attempt([&] { return decode_manifest(std::string(input), "manifest.pb"); });
//     if (manifest) expect(...);
//   }
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/error.h"
#include "runtime/file_system.h"

namespace transxssm::fuzz {

// A fault of the program. No std::exception, so that nothing between target and driver takes it for an error
// of the input.
struct Fault {
  std::string what;
};

struct Target {
  std::string name;
  size_t max_bytes;  // of inputs that are made up; findings may be longer
  void (*run)(std::string_view input);
};
const std::vector<Target>& targets();                   // by name
void PrintTo(const Target& target, std::ostream* out);  // for GoogleTest
bool add_target(Target target);

#define FUZZ_TARGET(name, max_bytes)                                 \
  static void run_##name(std::string_view input);                    \
  [[maybe_unused]] static const bool added_##name =                  \
      ::transxssm::fuzz::add_target({#name, max_bytes, run_##name}); \
  static void run_##name([[maybe_unused]] std::string_view input)

// One input; false where it was refused. Throws Fault, also for exceptions that are none of runtime/error.h's
// or say "a bug".
bool run_target(const Target& target, std::string_view input);

// Throws Fault where `holds` is false.
void expect(bool holds, std::string_view what);
// A refusal must be one of the user's errors, and its message UTF-8 of modest length without control
// characters, so that no file can write to a terminal what it likes.
void check_refusal(const Error& error);

// What fn returns; nothing where it refuses the input.
template <class Fn>
auto attempt(Fn&& fn) {
  using Result = std::invoke_result_t<Fn>;
  using Held = std::conditional_t<std::is_void_v<Result>, bool, Result>;
  std::optional<Held> result;
  try {
    if constexpr (std::is_void_v<Result>) {
      fn();
      result = true;
    } else {
      result.emplace(fn());
    }
  } catch (const Error& error) {
    check_refusal(error);
  }
  return result;
}

// Takes numbers and byte strings from the front of an input; zeros and nothing at its end.
class Bytes {
 public:
  explicit Bytes(std::string_view bytes) : rest_(bytes) {}
  uint8_t byte();
  uint64_t number(int bytes);                          // little-endian
  std::string_view take(uint64_t bytes);               // as many as there are
  std::string_view part() { return take(number(4)); }  // a length of four bytes, then as many
  std::string_view rest() const { return rest_; }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};
// What Bytes takes as a number or part.
std::string little_endian(uint64_t value, int bytes);
std::string part(std::string_view bytes);

// Files to read, in memory.
class MemoryFiles : public FileSystem {
 public:
  std::map<std::string, std::string> contents;

  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<ReadableFile> open(const std::string& path) override;
  void create_directory(const std::string& path, int mode) override;
  void set_default_mode(const std::string& directory) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  std::vector<std::string> list(const std::string& path) override;
  bool exists(const std::string& path) override;
  bool is_directory(const std::string& path) override;
  int64_t free_bytes(const std::string& path) override;
};

// The path of a real file with these bytes, for readers that take a path; in memory where the system has
// /dev/shm. The same name is the same file, replaced; it goes when the process ends.
std::string real_file(const std::string& name, std::string_view bytes);

}  // namespace transxssm::fuzz
