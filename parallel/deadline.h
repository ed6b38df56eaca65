// An end that does not depend on anybody else: neither on MPI, nor on the launcher, nor on a file system.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "runtime/error.h"

namespace transxssm {

// While it lives, time runs; when it is up the process says on standard error what it was at and ends. Other
// ranks learn of that from the launcher, which is seen to (end_launcher_later).
class Deadline {
 public:
  Deadline(std::string what, std::chrono::nanoseconds limit,
           int exit_code = static_cast<int>(ExitCode::communication));
  ~Deadline();
  Deadline(const Deadline&) = delete;

 private:
  void watch();

  const std::string what_;
  const std::chrono::nanoseconds limit_;
  const int exit_code_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;  // last: what it uses is there before it
};

// For a process that is about to end its job. mpirun, or its daemon on this host, ends with the job, but not
// where they cannot reach one another: both wait for the other's word until the kernel gives up their
// connection, a quarter of an hour or more. If the one that started this process is still there after
// `patience`, a small process ends it: the daemon by SIGTERM, which it obeys; mpirun, which then crashes on
// SIGTERM, by SIGIO (exit code 157), which it does not catch. Other launchers are left alone.
void end_launcher_later(std::chrono::seconds patience = std::chrono::seconds(10));

}  // namespace transxssm
