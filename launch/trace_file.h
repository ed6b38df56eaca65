// The trace of one training step as a file (`--trace FILE`).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/worker.h"
#include "runtime/output_file.h"
#include "runtime/trace.h"

namespace transxssm {

// Opens the output on rank 0, before the work: null where `path` is empty. A trace of an earlier start is
// replaced, a file of another kind only with `overwrite`, and never one of `inputs`.
std::unique_ptr<OutputFiles> open_trace(const std::string& path, bool overwrite,
                                        std::vector<std::string> inputs = {});

// Rank 0 writes the events of every rank to its `file` (null on the others). Collective.
void write_trace(OutputFiles* file, const std::vector<TraceEvent>& events, Communicator& world,
                 const std::string& host);

}  // namespace transxssm
