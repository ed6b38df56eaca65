#include "launch/benchmark_costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

namespace transxssm {
namespace {

// "mlp input gradient": model/linear.h multiplies x W^T forward, dy W for the input and dy^T x for the
// weight.
std::string purpose(const TraceEvent& product) {
  const std::string transposes = product.shape.substr(0, 2);
  const char* pass = transposes == "NT"   ? "forward"
                     : transposes == "NN" ? "input gradient"
                                          : "weight gradient";
  return *product.inside == '\0' ? pass : fmt::format("{} {}", product.inside, pass);
}

void add(std::vector<OperationTime>& list, std::span<const std::string> path, double seconds, double floor) {
  if (path.empty()) return;
  auto found =
      std::find_if(list.begin(), list.end(), [&](const OperationTime& o) { return o.name == path.front(); });
  if (found == list.end()) found = list.insert(list.end(), OperationTime{.name = path.front()});
  ++found->calls;
  found->seconds += seconds;
  found->floor_seconds += floor;
  add(found->parts, path.subspan(1), seconds, floor);
}

void longest_first(std::vector<OperationTime>& list) {
  std::stable_sort(list.begin(), list.end(),
                   [](const OperationTime& a, const OperationTime& b) { return a.seconds > b.seconds; });
  for (OperationTime& o : list) longest_first(o.parts);
}

OperationTime sum(const std::vector<OperationTime>& operations) {
  OperationTime all{.name = "all operations"};
  for (const OperationTime& o : operations)
    all.calls += o.calls, all.seconds += o.seconds, all.floor_seconds += o.floor_seconds;
  return all;
}

double percent(double part, double whole) {
  return whole > 0 ? 100 * part / whole : 0;
}

// Calls row(operation, depth) for every line of a table; `depths` of parts at the most, and no list of one
// part, which would say its line again.
template <class Row>
void for_each_row(const std::vector<OperationTime>& list, int depths, int depth, Row&& row) {
  for (const OperationTime& o : list) {
    row(o, depth);
    if (depth < depths && (o.parts.size() > 1 || depth == 0)) for_each_row(o.parts, depths, depth + 1, row);
  }
}

}  // namespace

std::vector<OperationTime> operation_times(const std::vector<TraceEvent>& events, const MachinePeaks& peaks,
                                           DType dtype) {
  std::vector<OperationTime> operations;
  for (const TraceEvent& e : events) {
    if (e.bytes == 0 && e.flops == 0) continue;
    std::vector<std::string> path = {e.name};
    if (!e.shape.empty()) path.insert(path.end(), {purpose(e), e.shape.substr(3)});
    add(operations, path, e.end - e.begin,
        std::max(e.bytes / peaks.copy_bandwidth, e.flops / peaks.flops(dtype)));
  }
  longest_first(operations);
  return operations;
}

std::string operations_text(const std::vector<OperationTime>& operations, double step_seconds) {
  std::string text = fmt::format("{:<32} {:>6} {:>10} {:>7} {:>10} {:>9}\n", "operation", "calls",
                                 "ms a step", "share", "floor ms", "of floor");
  const auto row = [&](const OperationTime& o, int depth) {
    text += fmt::format("{:<32} {:>6} {:>10.2f} {:>6.1f}% {:>10.2f} {:>8.0f}%\n",
                        std::string(static_cast<size_t>(2 * depth), ' ') + o.name, o.calls, 1e3 * o.seconds,
                        percent(o.seconds, step_seconds), 1e3 * o.floor_seconds,
                        percent(o.floor_seconds, o.seconds));
  };
  for_each_row(operations, 2, 0, row);
  row(sum(operations), 0);
  return text;
}

std::string operations_markdown(const std::vector<OperationTime>& operations, double step_seconds) {
  std::string text =
      "| operation | calls | ms a step | share of the step | floor, ms | of its floor |\n"
      "|---|---|---|---|---|---|\n";
  const auto row = [&](const OperationTime& o, int depth) {
    text += fmt::format("| {}{} | {} | {:.1f} | {:.1f} % | {:.1f} | {:.0f} % |\n",
                        depth > 0 ? "&nbsp;&nbsp;" : "", o.name, o.calls, 1e3 * o.seconds,
                        percent(o.seconds, step_seconds), 1e3 * o.floor_seconds,
                        percent(o.floor_seconds, o.seconds));
  };
  for_each_row(operations, 1, 0, row);
  row(sum(operations), 0);
  return text;
}

nlohmann::json operations_json(const std::vector<OperationTime>& operations) {
  nlohmann::json list = nlohmann::json::array();
  for (const OperationTime& o : operations) {
    list.push_back(
        {{"name", o.name}, {"calls", o.calls}, {"seconds", o.seconds}, {"floor_seconds", o.floor_seconds}});
    if (!o.parts.empty()) list.back()["parts"] = operations_json(o.parts);
  }
  return list;
}

}  // namespace transxssm
