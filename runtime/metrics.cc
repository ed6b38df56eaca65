#include "runtime/metrics.h"

#include "runtime/format.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "runtime/error.h"
#include "runtime/log.h"
#include "runtime/printable.h"

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

const MetricsHistory::Series* MetricsHistory::find(std::string_view name) const {
  const auto at =
      std::find_if(series.begin(), series.end(), [&](const auto& entry) { return entry.first == name; });
  return at == series.end() ? nullptr : &at->second;
}

namespace {

// One line of a metrics file: an object of numbers and nulls, and for a header its facts. Read by events, in
// the order of the file and without a tree: a line may have any number of names.
class Line final : public nlohmann::json_sax<Json> {
 public:
  explicit Line(const std::string& text) {
    if (!Json::sax_parse(text, this) && problem_.empty()) is_json_ = false;
  }

  bool is_json() const { return is_json_; }  // else half a line, or none of ours
  const std::string& problem() const { return problem_; }
  bool is_header() const { return format.has_value(); }

  std::optional<std::string> format;
  std::optional<int64_t> first_step, step;
  RunFacts facts;
  std::vector<std::pair<std::string, double>> values;

  bool null() override { return number(std::numeric_limits<double>::quiet_NaN()); }
  bool boolean(bool) override { return wrong("true and false are"); }
  bool number_integer(number_integer_t value) override { return whole(value); }
  bool number_unsigned(number_unsigned_t value) override {
    return value <= static_cast<uint64_t>(INT64_MAX) ? whole(static_cast<int64_t>(value))
                                                     : number(static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return number(value); }
  bool string(string_t& text) override {
    if (depth_ == 1 && name_ == "format")
      format = text;
    else if (section_ == Section::facts)
      facts.emplace_back(name_, text);
    else if (section_ != Section::not_finite)
      return wrong("text is");
    return true;
  }
  bool binary(binary_t&) override { return wrong("bytes are"); }
  bool start_object(size_t) override {
    if (++depth_ == 2 && name_ == "facts") section_ = Section::facts;
    if (depth_ == 2 && name_ == "not_finite") section_ = Section::not_finite;
    return depth_ == 1 || (depth_ == 2 && section_ != Section::none) || wrong("objects are");
  }
  bool end_object() override {
    --depth_;
    section_ = Section::none;
    return true;
  }
  bool start_array(size_t) override { return wrong("lists are"); }
  bool end_array() override { return true; }
  bool key(string_t& name) override {
    name_ = name;
    if (names_[depth_ - 1].insert(name).second) return true;
    problem_ = fmt::format("\"{}\" occurs twice", printable(name));
    return false;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    constexpr int kOutOfRange = 406;
    if (error.id == kOutOfRange) wrong("such numbers are");
    return false;
  }

 private:
  enum class Section { none, facts, not_finite };

  bool wrong(const char* what) {
    problem_ =
        depth_ == 0 ? "is no record of ours" : fmt::format("{} no value of \"{}\"", what, printable(name_));
    return false;
  }
  bool whole(int64_t value) {
    if (depth_ == 1 && name_ == "step")
      step = value;
    else if (depth_ == 1 && name_ == "first_step")
      first_step = value;
    else
      return number(static_cast<double>(value));
    return true;
  }
  bool number(double value) {
    if (depth_ != 1 || name_ == "step" || name_ == "first_step" || name_ == "format")
      return wrong("such numbers are");
    if (name_ != "time") values.emplace_back(name_, value);
    return true;
  }

  bool is_json_ = true;
  std::string problem_;
  int depth_ = 0;
  Section section_ = Section::none;
  std::string name_;
  std::unordered_set<std::string> names_[2];  // of the line, and of the section inside it
};

class HistoryReader {
 public:
  // Throws DataError.
  void read(const std::string& text, const std::string& path, int64_t number) {
    Line line(text);
    // Where a process was killed in mid-line the next start ends that line, so half a line may stand
    // anywhere.
    if (!line.is_json() && number > 1) return;
    if (line.is_json() && !line.problem().empty()) throw DataError("{}:{}: {}", path, number, line.problem());
    if (line.is_header()) {
      if (*line.format != kFormat) throw DataError("{}:{}: format is not '{}'", path, number, kFormat);
      if (!line.first_step) throw DataError("{}:{}: there is no first_step", path, number);
      start(*line.first_step, std::move(line.facts), number == 1);
    } else if (number == 1) {
      throw DataError("{}: does not begin with a header line; it is no metrics file", path);
    } else {
      if (!line.step) throw DataError("{}:{}: there is no step", path, number);
      for (auto& [name, value] : line.values) append(std::move(name), *line.step, value);
    }
  }

  MetricsHistory history;

 private:
  void start(int64_t first_step, RunFacts facts, bool is_first) {
    history.facts = std::move(facts);
    if (!is_first) history.resumed_steps.push_back(first_step);
    // What the interrupted start wrote beyond its checkpoint is void.
    while (!order_.empty()) {
      MetricsHistory::Series& series = history.series[order_.back()].second;
      if (series.step.back() < first_step) break;
      series.step.pop_back();
      series.value.pop_back();
      order_.pop_back();
    }
  }

  void append(std::string name, int64_t step, double value) {
    const auto [at, is_new] = index_.try_emplace(std::move(name), history.series.size());
    if (is_new) history.series.push_back({at->first, {}});
    history.series[at->second].second.step.push_back(step);
    history.series[at->second].second.value.push_back(value);
    order_.push_back(at->second);
  }

  std::unordered_map<std::string, size_t> index_;
  std::vector<size_t> order_;  // the series of each value, as they came
};

// The next line without its line feed; false at the end. Reads no more of a longer line than `max_bytes` + 1.
bool next_line(std::istream& in, size_t max_bytes, std::string& line) {
  line.clear();
  std::streambuf& bytes = *in.rdbuf();
  for (int c = bytes.sbumpc(); c != std::char_traits<char>::eof(); c = bytes.sbumpc()) {
    if (c == '\n') return true;
    line.push_back(static_cast<char>(c));
    if (line.size() > max_bytes) return true;
  }
  return !line.empty();
}

}  // namespace

MetricsHistory read_metrics(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw DataError("{}: cannot be opened; a run writes it from its first step on", path);
  HistoryReader reader;
  std::string line;
  for (int64_t number = 1; next_line(in, kMaxLine, line); ++number) {
    if (line.size() > kMaxLine)
      throw DataError("{}:{}: a line of more than {} bytes is no record of ours", path, number, kMaxLine);
    reader.read(line, path, number);
  }
  return std::move(reader.history);
}

}  // namespace transxssm
