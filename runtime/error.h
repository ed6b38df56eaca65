// Named exceptions. Each carries the process exit code a user can rely on (README, "Exit codes").
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace transxssm {

enum class ExitCode : int {
  ok = 0,
  internal = 1,         // a bug in this program
  usage = 2,            // command line or configuration
  data = 3,             // dataset or tokenizer
  checkpoint = 4,       // a checkpoint was refused
  checkpoint_save = 5,  // checkpoints cannot be saved
  numerics = 6,         // a loss or gradient is not finite, or numbers differ
  communication = 7,    // a peer is lost or hangs
  device = 8,           // device or memory
  output = 9,           // an output cannot be written: a full disk, a quota, a limit
  preempted = 75,       // stopped by a signal after a good save: run again to go on
};

// Base of all errors this program throws on purpose. what() is one complete sentence for the user: it names
// the rank, file, tensor or field, and the cure.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

#define TRANSXSSM_DEFINE_ERROR(Name, CODE)                                           \
  class Name : public Error {                                                        \
   public:                                                                           \
    template <class... Args>                                                         \
    explicit Name(fmt::format_string<Args...> format, Args&&... args)                \
        : Error(ExitCode::CODE, fmt::format(format, std::forward<Args>(args)...)) {} \
  }

TRANSXSSM_DEFINE_ERROR(InternalError, internal);
TRANSXSSM_DEFINE_ERROR(UsageError, usage);
TRANSXSSM_DEFINE_ERROR(DataError, data);
TRANSXSSM_DEFINE_ERROR(CheckpointError, checkpoint);
TRANSXSSM_DEFINE_ERROR(CheckpointSaveError, checkpoint_save);
TRANSXSSM_DEFINE_ERROR(NumericsError, numerics);
TRANSXSSM_DEFINE_ERROR(CommunicationError, communication);
TRANSXSSM_DEFINE_ERROR(DeviceError, device);
TRANSXSSM_DEFINE_ERROR(OutputError, output);

#undef TRANSXSSM_DEFINE_ERROR

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace transxssm

// An invariant of this program: always checked, also in release builds. Never for user input.
#define TRANSXSSM_CHECK(condition, ...)                                                         \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::transxssm::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (0)
