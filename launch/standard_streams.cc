#include "launch/standard_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "runtime/error.h"

namespace transxssm {
namespace {

// Whether the pipe or socket behind standard output has no reader any more.
bool reader_is_gone() {
  pollfd output = {.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  return poll(&output, 1, 0) == 1 && (output.revents & POLLERR) != 0;
}

}  // namespace

void prepare_standard_streams() {
  // Output is opened for reading only: what is printed there is lost, and writing it must fail.
  constexpr int kAccess[] = {O_RDONLY, O_RDONLY, O_WRONLY};
  for (int descriptor = 0; descriptor <= STDERR_FILENO; ++descriptor)
    if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF) [[maybe_unused]]
      const int opened = open("/dev/null", kAccess[descriptor]);  // takes the lowest number
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

void throw_lost_output(int error) {
  if (error == EPIPE || reader_is_gone()) throw Error(static_cast<ExitCode>(128 + SIGPIPE), "");
  throw OutputError("standard output cannot be written: {}; what is missing there is lost",
                    std::strerror(error != 0 ? error : EIO));
}

void flush_standard_output() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  const int error = errno;
  std::clearerr(stdout);
  throw_lost_output(error);
}

}  // namespace transxssm
