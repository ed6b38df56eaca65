// Ranks inside one process: one rank alone, and n threads as n ranks for tests.
#pragma once

#include <functional>
#include <memory>

#include "parallel/communicator.h"

namespace transxssm {

// A group of one.
std::unique_ptr<Communicator> single_rank();

// Runs fn on n threads, each with its rank of one communicator. When a rank throws, the waits of the others
// throw too, and the exception of the rank that failed first is rethrown here after all threads have ended.
void run_as_ranks(int n, const std::function<void(Communicator&)>& fn);

}  // namespace transxssm
