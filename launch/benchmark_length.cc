// `transxssm bench length`: speed and memory of training over the length of rows.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "launch/benchmark.h"
#include "launch/benchmark_steps.h"
#include "launch/plan.h"
#include "runtime/chart.h"
#include "runtime/cpu_features.h"
#include "runtime/format.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

using nlohmann::json;

// One model at one length.
struct Point {
  int64_t length = 0;
  int64_t microbatch = 0;  // rows
  std::vector<double> step_seconds, attention_seconds;
  RankMemory memory;
  int64_t scratch = 0;

  double step() const { return median(step_seconds); }
  double attention() const { return median(attention_seconds); }
  double attention_share() const { return attention() / step(); }
  // What a microbatch takes; weights, gradients and optimizer are the same at every length.
  int64_t bytes() const { return memory.activations + memory.buffers + scratch; }
  double bytes_per_token() const {
    return static_cast<double>(bytes()) / static_cast<double>(microbatch * length);
  }
};

struct Model {
  std::string preset;
  std::vector<Point> points;

  MemoryLine memory_line() const {
    std::vector<int64_t> lengths, bytes;
    for (const Point& p : points) lengths.push_back(p.length), bytes.push_back(p.bytes());
    return fit_memory(lengths, bytes);
  }

  // Shares of the speed at the shortest length that are lost at `p`: measured, and as far as attention's
  // growth alone accounts for it.
  double fall(const Point& p) const { return 1 - points.front().step() / p.step(); }
  double fall_by_attention(const Point& p) const {
    const double shortest = points.front().step();
    return 1 - shortest / (shortest + p.attention() - points.front().attention());
  }
  bool falls_by_attention_at_most() const {
    return std::all_of(points.begin(), points.end(),
                       [&](const Point& p) { return fall(p) <= p.attention_share(); });
  }
};

double attention_seconds(const std::vector<TraceEvent>& events) {
  double seconds = 0;
  for (const TraceEvent& e : events)
    if (e.flops > 0 && std::string_view(e.name).starts_with("Attention")) seconds += e.end - e.begin;
  return seconds;
}

// One visit of a model at one length: a trainer of its own, which goes before the next.
void visit(const LengthBenchmarkOptions& options, const std::string& preset, Worker& worker, Stream& stream,
           Point& point) {
  std::vector<std::string> overrides = options.overrides;
  const int64_t rows = options.tokens / point.length;
  point.microbatch = options.whole_step ? rows : 1;
  overrides.push_back(fmt::format("parallel.microbatch_size={}", point.microbatch));
  const TrainConfig config =
      benchmark_config({preset, rows, point.length, options.dtype}, std::move(overrides), 1);
  TimedTraining training(config, worker, stream);
  for (int i = 0; i < options.warmup; ++i) training.step();
  const bool traced_apart = stream.queue() != nullptr;  // on a device spans cost time
  for (int i = 0; i < options.steps; ++i) {
    if (traced_apart) {
      point.step_seconds.push_back(training.step());
      continue;
    }
    const TimedTraining::TracedStep step = training.trace_step();
    point.step_seconds.push_back(step.seconds);
    point.attention_seconds.push_back(attention_seconds(step.events));
  }
  if (traced_apart) point.attention_seconds.push_back(attention_seconds(training.trace_step().events));
  point.memory = make_plan(config, stream.device()).stages.front().memory;
  point.scratch = stream.scratch_bytes();
}

std::string table(const std::vector<Model>& models, int64_t tokens) {
  std::string text =
      fmt::format("{:<16} {:>7} {:>9} {:>7} {:>10} {:>11} {:>15} {:>10} {:>10}\n", "model", "row", "tokens/s",
                  "fall", "attention", "its growth", "rest us/token", "memory", "a token");
  for (const Model& m : models)
    for (const Point& p : m.points)
      text += fmt::format("{:<16} {:>7} {:>9.0f} {:>6.1f}% {:>9.1f}% {:>10.1f}% {:>15.1f} {:>10} {:>10}\n",
                          m.preset, p.length, static_cast<double>(tokens) / p.step(), 100 * m.fall(p),
                          100 * p.attention_share(), 100 * m.fall_by_attention(p),
                          1e6 * (p.step() - p.attention()) / static_cast<double>(tokens),
                          format_bytes(static_cast<double>(p.bytes())), format_bytes(p.bytes_per_token()));
  return text +
         "fall: of tokens/s since the shortest row; attention: share of its operations in the step, which "
         "the fall "
         "may be\nat most; its growth: the fall if all else took the same time at every length; memory: of a "
         "microbatch, without\nweights, gradients and optimizer\n";
}

std::string checks(const std::vector<Model>& models, bool whole_step) {
  std::string text;
  for (const Model& m : models) {
    const Point& longest = m.points.back();
    text += fmt::format(
        "speed      {}: falls by {:.1f} % from {} to {} tokens a row, attention takes {:.1f} %: {}\n",
        m.preset, 100 * m.fall(longest), m.points.front().length, longest.length,
        100 * longest.attention_share(),
        m.falls_by_attention_at_most() ? "at most its share at every length"
                                       : "more than its share at some length");
  }
  for (const Model& m : models) {
    if (whole_step) {
      const auto [low, high] =
          std::minmax_element(m.points.begin(), m.points.end(),
                              [](const Point& a, const Point& b) { return a.bytes() < b.bytes(); });
      text += fmt::format("memory     {}: {} to {} at the same tokens a microbatch\n", m.preset,
                          format_bytes(static_cast<double>(low->bytes())),
                          format_bytes(static_cast<double>(high->bytes())));
    } else {
      const MemoryLine line = m.memory_line();
      text += fmt::format("memory     {}: {} + {} x tokens of a row, at most {:.1f} % off that line: {}\n",
                          m.preset, format_bytes(line.base), format_bytes(line.per_token),
                          100 * line.deviation, line.linear() ? "linear" : "not linear");
    }
  }
  if (models.size() == 2) {
    text += fmt::format("ratio      {} over {}:", models[0].preset, models[1].preset);
    for (size_t i = 0; i < models[0].points.size(); ++i)
      text +=
          fmt::format("{} {:.2f} at {}", i == 0 ? "" : ",",
                      models[1].points[i].step() / models[0].points[i].step(), models[0].points[i].length);
    text += "\n";
  }
  return text;
}

json models_json(const std::vector<Model>& models, int64_t tokens, bool whole_step) {
  json list = json::array();
  for (const Model& m : models) {
    json points = json::array();
    for (const Point& p : m.points)
      points.push_back({{"seq", p.length},
                        {"microbatch_rows", p.microbatch},
                        {"tokens_per_s", static_cast<double>(tokens) / p.step()},
                        {"step_seconds", p.step_seconds},
                        {"attention_seconds", p.attention_seconds},
                        {"fall", m.fall(p)},
                        {"attention_share", p.attention_share()},
                        {"fall_by_attention", m.fall_by_attention(p)},
                        {"activation_bytes", p.memory.activations},
                        {"buffer_bytes", p.memory.buffers},
                        {"scratch_bytes", p.scratch},
                        {"memory_bytes", p.bytes()}});
    json model = {{"preset", m.preset},
                  {"points", std::move(points)},
                  {"fall_at_most_attention_share", m.falls_by_attention_at_most()}};
    if (!whole_step) {
      const MemoryLine line = m.memory_line();
      model["memory_line"] = {{"base_bytes", line.base},
                              {"bytes_per_token", line.per_token},
                              {"deviation", line.deviation},
                              {"linear", line.linear()}};
    }
    list.push_back(std::move(model));
  }
  return list;
}

std::vector<Chart> charts(const std::vector<Model>& models, int64_t tokens, bool whole_step) {
  Chart speed{.title = fmt::format("Training, {} tokens a step", tokens),
              .x_label = "tokens of a row",
              .y_label = "tokens/s",
              .log2_x = true,
              .y_from_zero = true};
  Chart memory{.title = whole_step ? "Memory of a step's activations" : "Memory of a row's activations",
               .x_label = "tokens of a row",
               .y_label = "MB",
               .log_y = !whole_step,  // proportional to length: a straight line
               .log2_x = true,
               .y_from_zero = whole_step};
  for (const Model& m : models) {
    Curve tokens_per_s{.name = m.preset, .dots = true}, bytes = tokens_per_s;
    for (const Point& p : m.points) {
      tokens_per_s.x.push_back(static_cast<double>(p.length));
      tokens_per_s.y.push_back(static_cast<double>(tokens) / p.step());
      bytes.x.push_back(static_cast<double>(p.length));
      bytes.y.push_back(static_cast<double>(p.bytes()) / 1e6);
    }
    speed.curves.push_back(std::move(tokens_per_s));
    memory.curves.push_back(std::move(bytes));
  }
  return {speed, memory};
}

void check_options(const LengthBenchmarkOptions& options) {
  if (options.lengths.size() < 3)
    throw UsageError("--seq: {} lengths; three at the least show how speed and memory go",
                     options.lengths.size());
  for (size_t i = 0; i < options.lengths.size(); ++i) {
    const int64_t length = options.lengths[i];
    if (length < 2 || options.tokens % length != 0)
      throw UsageError("--seq: {} does not divide --tokens {}", length, options.tokens);
    if (i > 0 && length <= options.lengths[i - 1])
      throw UsageError("--seq: {} stands after {}; give lengths in ascending order", length,
                       options.lengths[i - 1]);
  }
}

}  // namespace

MemoryLine fit_memory(const std::vector<int64_t>& lengths, const std::vector<int64_t>& bytes) {
  double xx = 0, xy = 0, yy = 0, x1 = 0, y1 = 0;  // sums over x = 1 / bytes, y = length / bytes
  for (size_t i = 0; i < lengths.size(); ++i) {
    const double x = 1 / static_cast<double>(bytes[i]), y = static_cast<double>(lengths[i]) * x;
    xx += x * x, xy += x * y, yy += y * y, x1 += x, y1 += y;
  }
  const double determinant = xx * yy - xy * xy;
  MemoryLine line{(x1 * yy - y1 * xy) / determinant, (xx * y1 - xy * x1) / determinant};
  for (size_t i = 0; i < lengths.size(); ++i) {
    const double fitted = line.base + line.per_token * static_cast<double>(lengths[i]);
    line.deviation = std::max(line.deviation, std::abs(fitted / static_cast<double>(bytes[i]) - 1));
  }
  return line;
}

void benchmark_lengths(const LengthBenchmarkOptions& options, Worker& worker, const Device& device,
                       int num_threads) {
  check_options(options);
  std::vector<Model> models;
  for (const std::string& preset : {options.preset, options.baseline}) {
    if (preset.empty()) continue;
    models.push_back({.preset = preset});
    for (const int64_t length : options.lengths) models.back().points.push_back({.length = length});
  }
  for (int round = 1; round <= options.rounds; ++round)
    for (size_t i = 0; i < options.lengths.size(); ++i)
      for (Model& model : models) {
        Point& point = model.points[i];
        Stream stream(device, num_threads);
        visit(options, model.preset, worker, stream, point);
        log_info("round {} of {}: {}, {} rows of {}: {:.0f} tokens/s", round, options.rounds, model.preset,
                 options.tokens / point.length, point.length,
                 static_cast<double>(options.tokens) / point.step_seconds.back());
      }

  const std::string machine = device.is_cpu() ? fmt::format("CPU, {}, {} threads", cpu_level(), num_threads)
                                              : device_runtime().describe(device.index);
  const char* microbatch = options.whole_step ? "step" : "row";
  const json result = {
      {"tokens", options.tokens}, {"dtype", options.dtype},
      {"microbatch", microbatch}, {"machine", machine},
      {"rounds", options.rounds}, {"steps", options.steps},
      {"warmup", options.warmup}, {"models", models_json(models, options.tokens, options.whole_step)}};
  if (options.json != nullptr) options.json->publish_text(result.dump(2) + "\n");
  if (options.plot != nullptr)
    options.plot->publish_text(chart_svg_file(charts(models, options.tokens, options.whole_step)));
  fmt::print(
      "bench length, {} tokens a step, {}, a microbatch is a {}; {}; {} steps in each of {} rounds\n{}{}",
      options.tokens, options.dtype, microbatch, machine, options.steps, options.rounds,
      table(models, options.tokens), checks(models, options.whole_step));
  fmt::print("{}\n", result.dump());
}

}  // namespace transxssm
