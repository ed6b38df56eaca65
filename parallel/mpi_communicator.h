// Ranks as MPI processes.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "parallel/communicator.h"

namespace transxssm {

// For what happens before a program knows its own time limit.
constexpr std::chrono::seconds kSetUpLimit(600);

// All processes of the job, on a duplicate of MPI's world. MPI must be initialised (MPI_THREAD_FUNNELED
// suffices) and stay so until the communicator and all its splits are destroyed. Used from the thread that
// initialised MPI. Messages longer than max_message_bytes travel in several parts, since MPI counts are
// 32-bit. Groups whose ranks are all on one host exchange tensors through memory that they share
// (shared_window.h, shared_message.h) where `shared_memory` allows and the system does; ranks that give
// different numbers for `host` count as ranks of different hosts. The time limit is kSetUpLimit until it is
// set.
std::unique_ptr<Communicator> mpi_world(int64_t max_message_bytes = int64_t{1} << 30,
                                        bool shared_memory = true, int host = 0);

// MPI_Init_thread and MPI_Finalize, which no other call can give a time limit: a process that is in one of
// them for longer than `limit` says so and ends with the exit code of a lost peer. false: MPI offers no
// MPI_THREAD_FUNNELED.
bool start_mpi(std::chrono::nanoseconds limit = kSetUpLimit);
void finish_mpi(std::chrono::nanoseconds limit);
// Ends all ranks with that code; this one also where the launcher cannot be reached.
void abort_mpi(int exit_code);

}  // namespace transxssm
