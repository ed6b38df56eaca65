// Where the time of a traced step went: operations beside their floors, products of matrices apart by what
// they serve, as text, Markdown and JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kernels/peak.h"
#include "runtime/trace.h"

namespace transxssm {

// Time of one operation in a step, all its calls together.
struct OperationTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0;
  double floor_seconds = 0;  // by bytes or by arithmetic, whichever is longer, at the measured peaks
  // Of products of matrices: by sub-layer and pass ("mlp input gradient"), and these by shape (M x N x K).
  std::vector<OperationTime> parts = {};
};
// Of the events that say what they cost (on a device: those with the device's times), longest first.
std::vector<OperationTime> operation_times(const std::vector<TraceEvent>& events, const MachinePeaks& peaks,
                                           DType dtype);

// Lines of a table, parts indented, with the sum of all below; shares are of `step_seconds`.
std::string operations_text(const std::vector<OperationTime>& operations, double step_seconds);
// The same as a Markdown table, without shapes.
std::string operations_markdown(const std::vector<OperationTime>& operations, double step_seconds);
nlohmann::json operations_json(const std::vector<OperationTime>& operations);

}  // namespace transxssm
