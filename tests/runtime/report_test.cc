#include "runtime/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>

#include "runtime/error.h"

namespace transxssm {
namespace {

namespace fs = std::filesystem;

// A run of `steps` steps with a falling, noisy loss.
MetricsHistory history(int64_t steps) {
  MetricsHistory out;
  out.facts = {{"mesh", "pp 2, <tp> 2"}};
  for (const char* name :
       {"train/loss", "train/grad_norm", "train/learning_rate", "perf/tokens_per_second", "train/tokens"}) {
    MetricsHistory::Series series;
    for (int64_t step = 1; step <= steps; ++step) {
      series.step.push_back(step);
      series.value.push_back(2 + 6 * std::exp(-6.0 * static_cast<double>(step) / static_cast<double>(steps)) +
                             0.3 * std::sin(static_cast<double>(step * step)));
    }
    out.series.emplace_back(name, series);
  }
  out.series.emplace_back("eval/loss", MetricsHistory::Series{{steps / 2, steps}, {4, 3.125}});
  return out;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

TEST(Report, IsSmallAndLoadsNothing) {
  const std::string page = report_html(history(100'000), "first run");
  EXPECT_LT(page.size(), 300'000u);
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(count(page, "<svg"), 4u);
  EXPECT_EQ(count(page, "<script"), 0u);
  EXPECT_EQ(count(page, "src="), 0u);
  EXPECT_EQ(count(page, "href"), 0u);
  EXPECT_EQ(count(page, "url("), 0u);
  EXPECT_NE(page.find("pp 2, &lt;tp&gt; 2"), std::string::npos);
  EXPECT_NE(page.find("<dd>3.1250</dd>"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
}

TEST(Report, KeepsTheFinalValidationApartFromTheCurve) {
  MetricsHistory h;
  h.series = {{"train/loss", {{1, 2, 3}, {4, 3, 2}}},
              {"eval/loss", {{2, 3}, {3.25, 2.25}}},
              {"eval/final_loss", {{3}, {2.5}}},
              {"eval/loss/web", {{2, 3}, {3.5, 2.5}}},
              {"eval/loss/books", {{2, 3}, {3, 2}}}};
  const Chart chart = loss_chart(h);
  ASSERT_EQ(chart.curves.size(), 3u);
  EXPECT_EQ(chart.curves[1].y, (std::vector<double>{3.25, 2.25}));
  EXPECT_EQ(chart.curves[2].y, (std::vector<double>{2.5}));
  EXPECT_NE(report_html(h, "r").find("<dt>final validation loss</dt><dd>2.5000</dd>"), std::string::npos);
  const Chart sources = source_chart(h);
  ASSERT_EQ(sources.curves.size(), 2u);
  EXPECT_EQ(sources.curves[0].name, "web");
  // A run that went on is where its curve is.
  h.series[1].second = {{2, 3, 4}, {3.25, 2.25, 2.125}};
  EXPECT_NE(report_html(h, "r").find("<dt>validation loss</dt><dd>2.1250</dd>"), std::string::npos);
}

// Rows (y of pixels) of the first path of a curve's class.
std::vector<double> rows(const std::string& svg, const std::string& style) {
  std::smatch found;
  EXPECT_TRUE(std::regex_search(svg, found, std::regex("<path class=\"" + style + "\" d=\"([^\"]*)\"")));
  const std::string commands = found[1];
  std::vector<double> out;
  const std::regex point("[ML][0-9]+ ([0-9.]+)");
  for (auto at = std::sregex_iterator(commands.begin(), commands.end(), point); at != std::sregex_iterator();
       ++at) {
    out.push_back(std::stod((*at)[1]));
  }
  return out;
}

TEST(Chart, KeepsEverySpike) {
  Chart chart{"t", "step", "unit", {{"c", {}, {}, false, false}}, {}, false};
  for (int step = 0; step < 50'000; ++step) {
    chart.curves[0].x.push_back(step);
    chart.curves[0].y.push_back(step == 31'234 ? 9 : step == 12'345 ? -9 : 0);
  }
  const auto ys = rows(chart_svg(chart), "s0");
  EXPECT_LT(ys.size(), 2'000u);
  const double top = *std::min_element(ys.begin(), ys.end()),
               bottom = *std::max_element(ys.begin(), ys.end());
  EXPECT_NEAR(bottom - top, 206 / 1.1, 1);  // the plot's height less its margins
  EXPECT_EQ(std::count(ys.begin(), ys.end(), top), 1);
  EXPECT_EQ(std::count(ys.begin(), ys.end(), bottom), 1);
}

TEST(Chart, LeavesGapsAndSurvivesOddInput) {
  const double nan = std::nan("");
  Chart chart{"t", "step", "unit", {{"c", {1, 2, 3, 4}, {1, nan, 2, 3}, false, true}}, {3}, false};
  const std::string svg = chart_svg(chart);
  EXPECT_EQ(count(svg, "<circle"), 3u);
  EXPECT_EQ(count(svg, "resumed at 3"), 1u);
  std::smatch found;
  ASSERT_TRUE(std::regex_search(svg, found, std::regex("<path class=\"s0\" d=\"([^\"]*)\"")));
  EXPECT_EQ(count(found[1], "M"), 2u);
  chart.log_y = true;
  chart.curves = {{"c", {1, 2}, {0, -1}, true, false},
                  {"empty", {}, {}, false, true},
                  {"far", {1e18, 1e18 + 256}, {1e300, 1e300}, false, false}};
  EXPECT_NE(chart_svg(chart).find("</svg>"), std::string::npos);
}

// Columns (x of pixels) of the circles of a curve's class.
std::vector<double> columns(const std::string& svg, const std::string& style) {
  std::vector<double> out;
  const std::regex circle("<circle class=\"" + style + "\" cx=\"([0-9.]+)\"");
  for (auto at = std::sregex_iterator(svg.begin(), svg.end(), circle); at != std::sregex_iterator(); ++at)
    out.push_back(std::stod((*at)[1]));
  return out;
}

TEST(Chart, PowersOfTwoAreEquallyFarApart) {
  Chart chart{"speed", "tokens of a row", "tokens/s", {{"ours", {512, 1024, 2048, 8192}, {4, 4, 3, 2}}}, {}};
  chart.curves.front().dots = true;
  chart.log2_x = chart.y_from_zero = true;
  const std::string svg = chart_svg(chart);
  const std::vector<double> x = columns(svg, "d0");
  ASSERT_EQ(x.size(), 4u);
  EXPECT_NEAR(x[1] - x[0], x[2] - x[1], 1.01) << "rounded to pixels";
  EXPECT_NEAR(x[3] - x[2], 2 * (x[1] - x[0]), 2.01);
  for (const char* tick : {">512<", ">1K<", ">2K<", ">4K<", ">8K<", ">0<"})
    EXPECT_EQ(count(svg, tick), 1u) << tick;
  EXPECT_EQ(count(svg, "<title>tokens of a row "), 4u) << "each point has a strip that tells it";
  EXPECT_EQ(count(svg, "<title>tokens of a row 8192"), 1u);
}

TEST(Chart, AFileOfSeveralHasOneStyleAndOnePaper) {
  const Chart chart{"a", "x", "y", {{"one", {1, 2}, {3, 4}}, {"two", {1, 2}, {4, 5}}}, {}};
  const std::string file = chart_svg_file({chart, chart});
  EXPECT_EQ(count(file, "<style>"), 1u);
  EXPECT_EQ(count(file, "var(--paper)\"/>"), 1u);
  EXPECT_EQ(count(file, "class=\"chart\""), 2u);
  EXPECT_EQ(count(file, "<svg"), count(file, "</svg>"));
  EXPECT_NE(file.find("viewBox=\"0 0 760 560\""), std::string::npos) << "one above the other";
  EXPECT_EQ(count(file, "class=\"e c1\">two<"), 2u) << "a legend in each";
}

TEST(Report, IsWrittenBesideTheMetrics) {
  const std::string directory = testing::TempDir() + "report_run";
  fs::remove_all(directory);
  fs::create_directories(directory);
  EXPECT_THROW(write_report(directory), DataError);
  {
    MetricsWriter writer(directory, 1, {{"seed", "1"}});
    writer.write({.step = 1,
                  .num_steps = 2,
                  .loss = 3,
                  .grad_norm = 1,
                  .learning_rate = 1e-3,
                  .tokens_per_second = 10});
    writer.write({.step = 2,
                  .num_steps = 2,
                  .loss = 2,
                  .grad_norm = 1,
                  .learning_rate = 1e-3,
                  .tokens_per_second = 10});
  }
  write_report(directory);
  std::stringstream page, image;
  page << std::ifstream(directory + "/report.html").rdbuf();
  image << std::ifstream(directory + "/loss.svg").rdbuf();
  EXPECT_NE(page.str().find("<h1>report_run</h1>"), std::string::npos);
  EXPECT_TRUE(image.str().starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  fs::remove_all(directory);
}

}  // namespace
}  // namespace transxssm
