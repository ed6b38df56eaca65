#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include "parallel/mpi_communicator.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

// While it lives, time runs; when it is up the process ends. MPI's other ranks learn of that from the
// launcher.
class Deadline {
 public:
  Deadline(const char* what, std::chrono::nanoseconds limit,
           int exit_code = static_cast<int>(ExitCode::communication))
      : thread_([this, what, limit, exit_code] { watch(what, limit, exit_code); }) {}
  ~Deadline() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void watch(const char* what, std::chrono::nanoseconds limit, int exit_code) {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, limit, [this] { return over_; })) return;
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    std::fprintf(
        stderr, "transxssm: process %d on host %s waited %.0f s in %s; it ends by itself (exit code %d)\n",
        static_cast<int>(getpid()), host, std::chrono::duration<double>(limit).count(), what, exit_code);
    std::fflush(stderr);
    _exit(exit_code);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;  // last: what it uses is there before it
};

}  // namespace

bool start_mpi(std::chrono::nanoseconds limit) {
  const Deadline deadline("MPI_Init_thread", limit);
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  return level >= MPI_THREAD_FUNNELED;
}

void finish_mpi(std::chrono::nanoseconds limit) {
  const Deadline deadline("MPI_Finalize", limit);
  MPI_Finalize();
}

void abort_mpi(int exit_code) {
  const Deadline deadline("MPI_Abort", std::chrono::seconds(5), exit_code);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
}

}  // namespace transxssm
