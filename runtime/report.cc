#include "runtime/report.h"

#include "runtime/format.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <fmt/format.h>

#include "runtime/log.h"

namespace transxssm {
namespace {

constexpr size_t kMaxSources = 4;  // in one chart

constexpr const char* kPageStyle =
    R"(*{box-sizing:border-box}body{margin:0 auto;max-width:860px;padding:32px 24px 64px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}h1{font-size:24px;margin:0 0 4px;letter-spacing:-.01em}p{color:var(--soft);margin:0 0 24px}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(122px,1fr));gap:12px;margin:0 0 28px}dl div{border:1px solid var(--line);border-radius:10px;padding:10px 14px}
dt{color:var(--soft);font-size:12px}dd{margin:0;font-size:19px;font-weight:600;font-variant-numeric:tabular-nums}
figure{margin:0 0 22px;border:1px solid var(--line);border-radius:10px;padding:10px}svg{display:block;width:100%;height:auto}
table{border-collapse:collapse;width:100%;margin-top:28px}td,th{text-align:left;vertical-align:top;padding:6px 12px 6px 0;border-top:1px solid var(--line);font-weight:400}
th{color:var(--soft);width:32%}td{overflow-wrap:anywhere}
)";

Curve curve_of(const MetricsHistory::Series& series, std::string name) {
  Curve curve;
  curve.name = std::move(name);
  curve.x.assign(series.step.begin(), series.step.end());
  curve.y = series.value;
  return curve;
}

Chart chart_of(const MetricsHistory& history, const char* metric, std::string title, std::string curve,
               std::string unit) {
  Chart chart{std::move(title), "step", std::move(unit), {}, {}, false};
  chart.marks.assign(history.resumed_steps.begin(), history.resumed_steps.end());
  if (const auto* series = history.find(metric)) chart.curves.push_back(curve_of(*series, std::move(curve)));
  return chart;
}

// The figures a reader looks for first.
std::string headline(const MetricsHistory& history) {
  std::string out = "<dl>";
  const auto item = [&](const char* name, const std::string& value) {
    out += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", name, value);
  };
  const auto last = [&](const char* metric, const char* name, const char* format) {
    const auto* series = history.find(metric);
    if (series && !series->value.empty()) item(name, fmt::format(fmt::runtime(format), series->value.back()));
  };
  if (const auto* loss = history.find("train/loss"); loss && !loss->step.empty()) {
    item("step", fmt::format("{}", loss->step.back()));
  }
  last("train/loss", "training loss", "{:.4f}");
  // The final figure counts once there is one, unless the run went on after it.
  const auto *curve = history.find("eval/loss"), *whole = history.find("eval/final_loss");
  const bool is_final = whole != nullptr && !whole->step.empty() &&
                        (curve == nullptr || curve->step.empty() || whole->step.back() >= curve->step.back());
  last(is_final ? "eval/final_loss" : "eval/loss", is_final ? "final validation loss" : "validation loss",
       "{:.4f}");
  last(is_final ? "eval/final_bits_per_byte" : "eval/bits_per_byte", "bits per byte", "{:.3f}");
  if (const auto* tokens = history.find("train/tokens"); tokens && !tokens->value.empty()) {
    item("tokens", format_short_count(tokens->value.back()));
  }
  if (const auto* speed = history.find("perf/tokens_per_second")) {
    std::vector<double> finite;
    std::copy_if(speed->value.begin(), speed->value.end(), std::back_inserter(finite),
                 [](double value) { return std::isfinite(value); });
    const auto middle = finite.begin() + static_cast<std::ptrdiff_t>(finite.size() / 2);
    std::nth_element(finite.begin(), middle, finite.end());
    if (!finite.empty()) item("median tokens/s", format_short_count(*middle));
  }
  return out + "</dl>";
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::trunc);
  out << text;
  out.close();
  if (!out) log_warning("cannot write {}; the metrics it is drawn from are whole", path);
}

}  // namespace

Chart loss_chart(const MetricsHistory& history) {
  Chart chart = chart_of(history, "train/loss", "Loss", "training", "nats per token");
  for (Curve& curve : chart.curves) curve.smooth = true;
  if (const auto* series = history.find("eval/loss")) {
    chart.curves.push_back(curve_of(*series, "validation"));
    chart.curves.back().dots = true;
  }
  // Over other rows than the curve: a point of its own.
  if (const auto* series = history.find("eval/final_loss")) {
    chart.curves.push_back(curve_of(*series, "final validation"));
    chart.curves.back().dots = true;
  }
  return chart;
}

Chart source_chart(const MetricsHistory& history) {
  constexpr std::string_view kPrefix = "eval/loss/";
  Chart chart = chart_of(history, "", "Validation by source", "", "nats per token");
  for (const auto& [name, series] : history.series)
    if (name.starts_with(kPrefix) && chart.curves.size() < kMaxSources) {
      chart.curves.push_back(curve_of(series, name.substr(kPrefix.size())));
      chart.curves.back().dots = true;
    }
  return chart;
}

std::string report_html(const MetricsHistory& history, const std::string& title) {
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">"
      "<meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light "
      "dark\">";
  out += fmt::format("<title>{0}</title><style>{1}{2}</style></head><body><h1>{0}</h1>", escape_markup(title),
                     chart_style(), kPageStyle);
  out += fmt::format("<p>TransXSSM pretraining{}</p>",
                     history.resumed_steps.empty()
                         ? std::string()
                         : fmt::format(", resumed {} time{} (dashed lines)", history.resumed_steps.size(),
                                       history.resumed_steps.size() > 1 ? "s" : ""));
  out += headline(history);

  Chart norm =
      chart_of(history, "train/grad_norm", "Gradient norm", "gradient norm", "L2 norm before clipping");
  norm.log_y = true;
  Chart speed = chart_of(history, "perf/tokens_per_second", "Speed", "all ranks", "tokens/s");
  for (Curve& curve : speed.curves) curve.smooth = true;
  for (const Chart& chart :
       {loss_chart(history), speed,
        chart_of(history, "train/learning_rate", "Learning rate", "learning rate", "AdamW"), norm,
        chart_of(history, "eval/bits_per_byte", "Validation", "validation", "bits per byte"),
        source_chart(history)}) {
    if (!chart.curves.empty() && !chart.curves.front().x.empty())
      out += "<figure>" + chart_svg(chart) + "</figure>";
  }

  out += "<table>";
  for (const auto& [name, value] : history.facts) {
    out += fmt::format("<tr><th>{}</th><td>{}</td></tr>", escape_markup(name), escape_markup(value));
  }
  return out + "</table></body></html>\n";
}

void write_report(const std::string& run_directory) {
  const MetricsHistory history = read_metrics(run_directory + "/metrics.jsonl");
  const std::string name = std::filesystem::path(run_directory).lexically_normal().filename().string();
  write_text(run_directory + "/report.html", report_html(history, name.empty() ? "run" : name));
  write_text(run_directory + "/loss.svg", chart_svg_file({loss_chart(history)}));
}

}  // namespace transxssm
