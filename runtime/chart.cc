#include "runtime/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "runtime/printable.h"

namespace transxssm {

std::string escape_markup(const std::string& text) {
  std::string out;
  for (const char c : printable_message(text)) {  // a control character would spoil the whole file
    switch (c) {
      case '\t':
        out += ' ';
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}
namespace {

// Pixels of the drawing: the plot inside, margins for the numbers at its left and below.
constexpr int kWidth = 760, kHeight = 280, kLeft = 62, kRight = 14, kTop = 34, kBottom = 40;
constexpr int kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
constexpr int kTooltips = 120;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  void widen_if_empty() {
    if (low > high) *this = {0, 1};
    if (low == high)
      *this = {low - (low == 0 ? 1 : std::abs(low) * 0.05), high + (high == 0 ? 1 : std::abs(high) * 0.05)};
  }
};

// Data to pixels.
struct Frame {
  Range x, y;  // of the axes: logarithms where they are logarithmic
  bool log_y, log2_x;
  double along(double value) const { return log2_x ? std::log2(value) : value; }
  double column(double value) const { return kLeft + (along(value) - x.low) / (x.high - x.low) * kPlotWidth; }
  double row(double value) const {
    const double v = log_y ? std::log10(value) : value;
    return kTop + (1 - (v - y.low) / (y.high - y.low)) * kPlotHeight;
  }
};

std::string label(double value) {
  const double size = std::abs(value);
  if (size >= 1e9) return fmt::format("{:g}B", value / 1e9);
  if (size >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:.4g}", value);
}

// Round numbers, about `count` of them, inside the range: multiples of 1, 2 or 5 times a power of ten.
std::vector<double> ticks(const Range& range, int count) {
  const double raw = (range.high - range.low) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double step = power * (raw / power > 5 ? 10 : raw / power > 2 ? 5 : raw / power > 1 ? 2 : 1);
  std::vector<double> out;
  const double first = std::ceil(range.low / step);
  for (int i = 0; i <= 2 * count && (first + i) * step <= range.high + step * 1e-9; ++i) {
    out.push_back((first + i) * step);
  }
  return out;
}

// The curve as path commands; of points that share a pixel column only the lowest and the highest are drawn.
std::string path(const Frame& frame, const std::vector<double>& xs, std::span<const double> ys) {
  std::string out;
  bool pen_down = false;
  const auto point = [&](double column, double row) {
    out += fmt::format("{}{:.0f} {:.1f}", pen_down ? 'L' : 'M', column, row);
    pen_down = true;
  };
  for (size_t i = 0; i < xs.size();) {
    const double column = std::round(frame.column(xs[i]));
    Range rows;
    bool gap = false, rising = false;
    for (; i < xs.size() && std::round(frame.column(xs[i])) == column; ++i) {
      if (!std::isfinite(ys[i]) || (frame.log_y && ys[i] <= 0)) {
        gap = true;
        continue;
      }
      const double row = frame.row(ys[i]);
      rising = row < rows.low;
      rows.include(row);
    }
    if (rows.low <= rows.high) {  // end near the last value, so that the line goes on from there
      point(column, rising ? rows.high : rows.low);
      if (rows.high - rows.low >= 0.1) point(column, rising ? rows.low : rows.high);
    }
    if (gap) pen_down = false;
  }
  return out;
}

// Mean over the points beside each one, 2 % of all, fewer and as many on both sides near the ends: it neither
// lags behind the curve nor bends it at its ends.
std::vector<double> smoothed(const std::vector<double>& values) {
  std::vector<double> sum = {0}, count = {0};  // of the finite values before each index
  for (const double value : values) {
    const bool finite = std::isfinite(value);
    sum.push_back(sum.back() + (finite ? value : 0));
    count.push_back(count.back() + (finite ? 1 : 0));
  }
  std::vector<double> out = values;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t reach = std::min({i, values.size() - 1 - i, values.size() / 100});
    const size_t first = i - reach, end = i + reach + 1;
    if (std::isfinite(values[i])) out[i] = (sum[end] - sum[first]) / (count[end] - count[first]);
  }
  return out;
}

// Of a logarithmic axis, in powers of ten: 1, 2 and 5 times each power, or the powers alone where the range
// is wide.
std::vector<double> log_ticks(const Range& range) {
  if (range.high - range.low < 0.7) return ticks(range, 3);
  std::vector<double> out;
  for (double power = std::floor(range.low); power <= range.high && out.size() < 40; ++power) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (digit > 1 && range.high - range.low > 3) continue;
      const double tick = power + std::log10(digit);
      if (tick >= range.low && tick <= range.high) out.push_back(tick);
    }
  }
  return out;
}

// Powers of two in the range, every second or fourth one where there are many; their values.
std::vector<double> powers_of_two(const Range& range) {
  double stride = 1;
  while ((range.high - range.low) / stride > 12) stride *= 2;
  std::vector<double> out;
  for (double power = std::ceil(range.low - 1e-9); power <= range.high + 1e-9; power += stride)
    out.push_back(std::exp2(power));
  return out;
}

std::string power_label(double value) {
  return value >= 1024 ? fmt::format("{:g}K", value / 1024) : fmt::format("{:g}", value);
}

Frame frame_of(const Chart& chart) {
  Frame frame{{}, {}, chart.log_y, chart.log2_x};
  if (chart.y_from_zero) frame.y.include(0);
  for (const Curve& curve : chart.curves) {
    for (size_t i = 0; i < curve.x.size(); ++i) {
      frame.x.include(frame.along(curve.x[i]));
      frame.y.include(chart.log_y ? (curve.y[i] > 0 ? std::log10(curve.y[i]) : std::nan("")) : curve.y[i]);
    }
  }
  frame.x.widen_if_empty();
  frame.y.widen_if_empty();
  const double margin = 0.05 * (frame.y.high - frame.y.low);
  frame.y.high += margin;
  if (!(frame.y.low >= 0 && frame.y.low < margin && !chart.log_y)) frame.y.low -= margin;
  return frame;
}

std::string axes(const Chart& chart, const Frame& frame) {
  std::string out;
  for (const double tick : chart.log_y ? log_ticks(frame.y) : ticks(frame.y, 5)) {
    const double row = kTop + (1 - (tick - frame.y.low) / (frame.y.high - frame.y.low)) * kPlotHeight;
    out += fmt::format(
        "<path class=\"grid\" d=\"M{} {:.1f}h{}\"/><text x=\"{}\" y=\"{:.1f}\" class=\"e\">{}</text>", kLeft,
        row, kPlotWidth, kLeft - 7, row + 4, label(chart.log_y ? std::pow(10, tick) : tick));
  }
  for (const double tick : chart.log2_x ? powers_of_two(frame.x) : ticks(frame.x, 8)) {
    out += fmt::format("<text x=\"{:.0f}\" y=\"{}\" class=\"m\">{}</text>", frame.column(tick),
                       kTop + kPlotHeight + 17, chart.log2_x ? power_label(tick) : label(tick));
  }
  for (const double mark : chart.marks) {
    if (frame.along(mark) < frame.x.low || frame.along(mark) > frame.x.high) continue;
    out += fmt::format("<path class=\"mark\" d=\"M{:.0f} {}v{}\"><title>resumed at {}</title></path>",
                       frame.column(mark), kTop, kPlotHeight, label(mark));
  }
  out += fmt::format("<text x=\"{}\" y=\"20\" class=\"t\">{}</text>", kLeft,
                     escape_markup(chart.title + ", " + chart.y_label));
  out += fmt::format("<text x=\"{}\" y=\"{}\" class=\"m\">{}</text>", kLeft + kPlotWidth / 2, kHeight - 6,
                     escape_markup(chart.x_label));
  return out;
}

// Invisible strips over the plot that show, where the pointer rests, the values beneath.
std::string tooltips(const Chart& chart, const Frame& frame) {
  std::string out;
  const double width = static_cast<double>(kPlotWidth) / kTooltips;
  const auto strip_of = [&](double x) {
    return std::min(kTooltips - 1, static_cast<int>((frame.column(x) - kLeft) / width));
  };
  for (int strip = 0; strip < kTooltips; ++strip) {
    std::string text;
    for (const Curve& curve : chart.curves) {  // the last point inside the strip
      const auto end = std::partition_point(curve.x.begin(), curve.x.end(),
                                            [&](double x) { return strip_of(x) <= strip; });
      if (end == curve.x.begin() || strip_of(*std::prev(end)) != strip) continue;
      const double y = curve.y[static_cast<size_t>(end - curve.x.begin() - 1)];
      if (text.empty()) text = fmt::format("{} {:g}", chart.x_label, *std::prev(end));
      text += fmt::format("\n{}: {:.5g} {}", curve.name, y, chart.y_label);
    }
    if (text.empty()) continue;
    out += fmt::format(
        "<rect class=\"tip\" x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\"><title>{}</title></rect>",
        kLeft + strip * width, kTop, width, kPlotHeight, escape_markup(text));
  }
  return out;
}

}  // namespace

std::string chart_svg(const Chart& chart) {
  const Frame frame = frame_of(chart);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"{}\">",
      kWidth, kHeight, escape_markup(chart.title));
  out += axes(chart, frame);
  int legend = kWidth - kRight;
  for (size_t i = chart.curves.size();
       i-- > 0 && chart.curves.size() > 1;) {  // right to left, beside the title
    const std::string& name = chart.curves[i].name;
    out +=
        fmt::format("<text x=\"{}\" y=\"20\" class=\"e c{}\">{}</text>", legend, i % 4, escape_markup(name));
    legend -= static_cast<int>(name.size()) * 7 + 18;
  }
  for (size_t i = 0; i < chart.curves.size(); ++i) {
    const Curve& curve = chart.curves[i];
    out += fmt::format("<path class=\"s{}{}\" d=\"{}\"/>", i % 4, curve.smooth ? " raw" : "",
                       path(frame, curve.x, curve.y));
    if (curve.smooth) {
      out += fmt::format("<path class=\"s{}\" d=\"{}\"/>", i % 4, path(frame, curve.x, smoothed(curve.y)));
    }
    for (size_t p = 0; curve.dots && curve.x.size() <= 200 && p < curve.x.size(); ++p) {
      if (!std::isfinite(curve.y[p]) || (chart.log_y && curve.y[p] <= 0)) continue;
      out += fmt::format("<circle class=\"d{}\" cx=\"{:.0f}\" cy=\"{:.1f}\" r=\"2.8\"/>", i % 4,
                         frame.column(curve.x[p]), frame.row(curve.y[p]));
    }
  }
  return out + tooltips(chart, frame) + "</svg>";
}

std::string chart_style() {
  return R"(:root,svg{--paper:#fff;--ink:#1c2430;--soft:#6b7686;--line:#e6e9ee;--c0:#2563c9;--c1:#d9601a;--c2:#12876a;--c3:#8a4bc2}
@media(prefers-color-scheme:dark){:root,svg{--paper:#12161d;--ink:#e8ecf2;--soft:#93a0b2;--line:#262d38;--c0:#6ea8ff;--c1:#ff9f5c;--c2:#4fd1a8;--c3:#c69bf2}}
.chart{font:12px system-ui,sans-serif}.chart text{fill:var(--soft)}.chart .t{fill:var(--ink);font-weight:600;font-size:14px}
.e{text-anchor:end}.m{text-anchor:middle}.grid{stroke:var(--line)}.mark{stroke:var(--soft);stroke-dasharray:3 4}
.chart path{fill:none;stroke-width:1.7;stroke-linejoin:round}.chart .grid,.chart .mark{stroke-width:1}.chart .raw{opacity:.28;stroke-width:1}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.d0{fill:var(--c0)}.d1{fill:var(--c1)}.d2{fill:var(--c2)}.d3{fill:var(--c3)}
.chart .c0{fill:var(--c0)}.chart .c1{fill:var(--c1)}.chart .c2{fill:var(--c2)}.chart .c3{fill:var(--c3)}
.tip{fill:var(--soft);fill-opacity:0}.tip:hover{fill-opacity:.16}
)";
}

std::string chart_svg_file(const std::vector<Chart>& charts) {
  const size_t height = kHeight * charts.size();
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\"><style>{2}</style>"
      "<rect width=\"{0}\" height=\"{1}\" rx=\"8\" fill=\"var(--paper)\"/>",
      kWidth, height, chart_style());
  for (size_t i = 0; i < charts.size(); ++i)
    svg += fmt::format("<svg y=\"{}\" width=\"{}\" height=\"{}\">", kHeight * i, kWidth, kHeight) +
           chart_svg(charts[i]) + "</svg>";
  return svg + "</svg>\n";
}

}  // namespace transxssm
