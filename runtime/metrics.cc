#include "runtime/metrics.h"

#include "runtime/format.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>

#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

using Json = nlohmann::ordered_json;  // its numbers print in the shortest form that reads back (Grisu2)

constexpr const char* kFormat = "transxssm metrics 1";
constexpr size_t kMaxLine = size_t{1} << 20;  // of a file being read: ours are far shorter

double unix_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) / 1000;
}

const char* not_finite_name(double value) {
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

// Whole numbers without a point: counts stay counts.
Json number(double value) {
  if (std::abs(value) < 9e15 && value == std::trunc(value) && !(value == 0 && std::signbit(value))) {
    return static_cast<int64_t>(value);
  }
  return value;
}

}  // namespace

std::string format_step_line(const StepMetrics& m) {
  const size_t width = fmt::formatted_size("{}", m.num_steps);
  return fmt::format(
      "step {:>{}}/{} | loss {:.4f} | grad {:.3g} | lr {:.3e} | {:>6} tok/s | {:.0f} ms | {} tokens | eta {}",
      m.step, width, m.num_steps, m.loss, m.grad_norm, m.learning_rate,
      format_short_count(m.tokens_per_second), 1e3 * m.step_seconds,
      format_short_count(static_cast<double>(m.tokens)), format_duration(m.eta_seconds));
}

MetricsWriter::MetricsWriter(const std::string& run_directory, int64_t first_step, const RunFacts& facts)
    : jsonl_(run_directory + "/metrics.jsonl"), events_(run_directory, first_step) {
  Json header = {
      {"format", kFormat}, {"first_step", first_step}, {"time", unix_seconds()}, {"facts", Json::object()}};
  for (const auto& [name, value] : facts) header["facts"][name] = value;
  const std::string line = header.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!jsonl_.append(jsonl_.ends_inside_line() ? "\n" + line : line))
    warn_once(jsonl_.path(), jsonl_.error());
}

void MetricsWriter::warn_once(const std::string& path, const std::string& error) {
  if (warned_) return;
  warned_ = true;
  log_warning("cannot write {}: {}; training goes on, some metrics are lost", path, error);
}

void MetricsWriter::write(int64_t step, std::span<const Metric> metrics) {
  const double now = unix_seconds();
  Json record = {{"step", step}, {"time", now}};
  Json not_finite = Json::object();
  for (const Metric& metric : metrics) {
    const bool finite = std::isfinite(metric.value);
    record[metric.name] = finite ? number(metric.value) : Json(nullptr);
    if (!finite) not_finite[metric.name] = not_finite_name(metric.value);
    if (!events_.scalar(metric.name, step, metric.value, now)) warn_once(events_.path(), events_.error());
  }
  if (!not_finite.empty()) record["not_finite"] = not_finite;
  if (!jsonl_.append(record.dump() + "\n")) warn_once(jsonl_.path(), jsonl_.error());
}

void MetricsWriter::write(const StepMetrics& m, std::span<const Metric> more) {
  std::vector<Metric> metrics = {{"train/loss", m.loss},
                                 {"train/grad_norm", m.grad_norm},
                                 {"train/learning_rate", m.learning_rate},
                                 {"train/tokens", static_cast<double>(m.tokens)},
                                 {"perf/tokens_per_second", m.tokens_per_second},
                                 {"perf/step_ms", 1e3 * m.step_seconds}};
  metrics.insert(metrics.end(), more.begin(), more.end());
  write(m.step, metrics);
}

void MetricsWriter::write_validation(int64_t step, double loss, double bits_per_byte) {
  const Metric metrics[] = {{"eval/loss", loss}, {"eval/bits_per_byte", bits_per_byte}};
  write(step, metrics);
}

const MetricsHistory::Series* MetricsHistory::find(std::string_view name) const {
  const auto at =
      std::find_if(series.begin(), series.end(), [&](const auto& entry) { return entry.first == name; });
  return at == series.end() ? nullptr : &at->second;
}

namespace {

void read_header(const Json& header, MetricsHistory& history, bool first) {
  const int64_t first_step = header.at("first_step").get<int64_t>();
  history.facts.clear();
  for (const auto& [name, value] : header.at("facts").items())
    history.facts.emplace_back(name, value.get<std::string>());
  if (!first) history.resumed_steps.push_back(first_step);
  for (auto& [name, series] :
       history.series) {  // what the interrupted start wrote beyond its checkpoint is void
    while (!series.step.empty() && series.step.back() >= first_step) {
      series.step.pop_back();
      series.value.pop_back();
    }
  }
}

void read_record(const Json& record, MetricsHistory& history) {
  const int64_t step = record.at("step").get<int64_t>();
  for (const auto& [name, value] : record.items()) {
    if (name == "step" || name == "time" || name == "not_finite") continue;
    auto at =
        std::find_if(history.series.begin(), history.series.end(), [&](auto& s) { return s.first == name; });
    if (at == history.series.end()) at = history.series.insert(at, {name, {}});
    at->second.step.push_back(step);
    at->second.value.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                               : value.get<double>());
  }
}

}  // namespace

MetricsHistory read_metrics(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw DataError("{}: cannot be opened; a run writes it from its first step on", path);
  MetricsHistory history;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.size() > kMaxLine)
      throw DataError("{}:{}: a line of {} bytes is no record of ours", path, number, line.size());
    const Json json = Json::parse(line, nullptr, false);
    // Where a process was killed in mid-line the next start ends that line, so half a line may stand
    // anywhere.
    if (json.is_discarded() && number > 1) continue;
    try {
      if (json.contains("format")) {
        if (json["format"] != kFormat) throw DataError("{}:{}: format is not '{}'", path, number, kFormat);
        read_header(json, history, number == 1);
      } else if (number == 1) {
        throw DataError("{}: does not begin with a header line; it is no metrics file", path);
      } else {
        read_record(json, history);
      }
    } catch (const Json::exception& error) {
      throw DataError("{}:{}: {}", path, number, error.what());
    }
  }
  return history;
}

}  // namespace transxssm
