// Line charts as SVG text, drawn without scripts or outside resources. Any number of points: each pixel
// column keeps its minimum and maximum, so that no spike is lost and the size is bounded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace transxssm {

struct Curve {
  std::string name;
  std::vector<double> x;  // ascending
  std::vector<double> y;  // NaN leaves a gap
  bool smooth = false;    // draw faint, with a moving mean over it
  bool dots = false;      // few points: mark each
};

struct Chart {
  std::string title;
  std::string x_label;
  std::string y_label;  // with its unit
  std::vector<Curve> curves;
  std::vector<double> marks;  // vertical lines: where the run was resumed
  bool log_y = false;         // only where every value is positive
  bool log2_x = false;        // likewise; marked at powers of two, K for 1024
  bool y_from_zero = false;
};

// An <svg> element that takes its colours from chart_style().
std::string chart_svg(const Chart& chart);
// The style sheet of charts, light and dark by the reader's preference.
std::string chart_style();
// A file of its own, for pages that show images: charts one above the other.
std::string chart_svg_file(const std::vector<Chart>& charts);

// Text with the characters that HTML and SVG give a meaning replaced.
std::string escape_markup(const std::string& text);

}  // namespace transxssm
