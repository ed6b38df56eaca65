// What every communicator must do, written once: run on threads as ranks, on MPI processes, and on whatever
// follows.
#pragma once

#include <span>

#include "parallel/communicator.h"

namespace transxssm {

struct CommunicatorCase {
  const char* name;
  void (*run)(Communicator& world);  // on every rank; reports through GoogleTest
};

std::span<const CommunicatorCase> communicator_cases();

}  // namespace transxssm
