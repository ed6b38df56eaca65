// metrics.jsonl read back, and the report made of it.
#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/metrics.h"
#include "runtime/report.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

// The history as lines of its own: the facts, then a record for each value.
std::string lines_of(const MetricsHistory& history) {
  std::string text = "{\"format\":\"transxssm metrics 1\",\"first_step\":1,\"facts\":{";
  for (const auto& [name, value] : history.facts)
    text +=
        (text.back() == '{' ? "" : ",") + nlohmann::json(name).dump() + ":" + nlohmann::json(value).dump();
  text += "}}\n";
  for (const auto& [name, series] : history.series)
    for (size_t i = 0; i < series.step.size(); ++i) {
      nlohmann::ordered_json record = {{"step", series.step[i]}};
      record[name] = std::isfinite(series.value[i]) ? nlohmann::ordered_json(series.value[i]) : nullptr;
      text += record.dump() + "\n";
    }
  return text;
}

bool same_history(const MetricsHistory& a, const MetricsHistory& b) {
  const auto used = [](const MetricsHistory& h) {
    std::vector<std::pair<std::string, std::string>> list;
    for (const auto& [name, series] : h.series)
      for (size_t i = 0; i < series.step.size(); ++i)
        list.emplace_back(name, fmt::format("{} {}", series.step[i], series.value[i]));
    return list;
  };
  return a.facts == b.facts && used(a) == used(b);
}

}  // namespace

FUZZ_TARGET(metrics, 1024) {
  const MetricsHistory history = read_metrics(fuzz::real_file("metrics.jsonl", input));
  const MetricsHistory again = read_metrics(fuzz::real_file("again.jsonl", lines_of(history)));
  fuzz::expect(same_history(history, again), "metrics written again say something else");
  const std::string page = report_html(history, "run");
  for (const char c : page)
    fuzz::expect(static_cast<unsigned char>(c) >= 0x20 || c == '\n', "a control character in the report");
}

}  // namespace transxssm
