#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>

#include "parallel/deadline.h"
#include "parallel/mpi_communicator.h"
#include "runtime/error.h"

namespace transxssm {

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
  // Where a peer is lost, the launcher may be, too. Otherwise it ends the job in its own time, with this
  // code.
  if (exit_code == static_cast<int>(ExitCode::communication)) end_launcher_later();
  MPI_Abort(MPI_COMM_WORLD, exit_code);
}

}  // namespace transxssm
