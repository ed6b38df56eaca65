// Ranks as MPI processes.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/communicator.h"

namespace transxssm {

// All processes of the job, on a duplicate of MPI's world. MPI must be initialised (MPI_THREAD_FUNNELED
// suffices) and stay so until the communicator and all its splits are destroyed. Used from the thread that
// initialised MPI. Messages longer than max_message_bytes travel in several parts, since MPI counts are
// 32-bit. Groups whose ranks are all on one host exchange tensors through memory that they share
// (shared_window.h, shared_message.h) where `shared_memory` allows and the system does.
std::unique_ptr<Communicator> mpi_world(int64_t max_message_bytes = int64_t{1} << 30,
                                        bool shared_memory = true);

}  // namespace transxssm
