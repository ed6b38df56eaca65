#include "launch/failure.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>

#include "launch/standard_streams.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

Failure failure(ExitCode code, const std::string& message) {
  return {static_cast<int>(code), message};
}

// A call of the operating system that failed where no one gave it a name of its own.
Failure system_failure(const std::system_error& error) {
  if (std::ferror(stdout) != 0) {  // a print that threw
    try {
      std::clearerr(stdout);
      throw_lost_output(error.code().value());
    } catch (const Error& lost) {
      return failure(lost.code(), lost.what());
    }
  }
  switch (error.code().value()) {
    case EAGAIN:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return failure(ExitCode::device,
                     fmt::format("{}: a limit of this machine; look at ulimit -a and the container's limits",
                                 error.what()));
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EROFS:
    case EIO:
    case EPIPE:
      return failure(ExitCode::output, fmt::format("{}; what was to be written is not whole", error.what()));
    default:
      return failure(ExitCode::usage, fmt::format("{}; name another file or directory", error.what()));
  }
}

}  // namespace

Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return failure(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failure(ExitCode::device, "out of memory; use a smaller parallel.microbatch_size or more ranks");
  } catch (const std::length_error&) {
    return failure(ExitCode::device, "more memory was asked for than there can be; look at the sizes given");
  } catch (const std::system_error& error) {
    return system_failure(error);
  } catch (const std::exception& error) {
    return failure(ExitCode::internal, error.what());
  } catch (...) {
    return failure(ExitCode::internal, "an exception of unknown type");
  }
}

}  // namespace transxssm
