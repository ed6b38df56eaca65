// The trace of one training step as a file (`--trace FILE`).
#pragma once

#include <string>
#include <vector>

#include "launch/worker.h"
#include "runtime/trace.h"

namespace transxssm {

// Rank 0 writes the events of every rank to `file`. Collective.
void write_trace(const std::string& file, const std::vector<TraceEvent>& events, Communicator& world,
                 const std::string& host);

}  // namespace transxssm
