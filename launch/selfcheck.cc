#include "launch/selfcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

#include "launch/plan.h"
#include "launch/training_data.h"
#include "parallel/device_transport.h"
#include "parallel/local.h"

namespace transxssm {
namespace {

constexpr double kLossBound = 2e-6;      // relative
constexpr double kLogitsBound = 2e-5;    // of the largest; the layers' outputs likewise
constexpr double kGradientBound = 1e-4;  // of the gradient's norm,
constexpr double kGradientFloor = 1e-4;  // or of this share of the global norm where its own is smaller
constexpr double kTrajectoryLossBound = 1e-4;
constexpr double kTrajectoryWeightBound = 1e-3;  // of the weight's change
// bf16_error.json is one draw of the rounding of a careful implementation; ours is another. A loss is a mean
// over few tokens whose errors cancel by chance: a unit of bf16 is allowed in any case.
constexpr double kBf16Allowance = 2;
constexpr double kBf16Unit = 0x1p-9;
constexpr double kTorchLogits = 7e-6, kTorchGradients = 4e-5;

constexpr double kMeshBound = 1e-5;
constexpr double kMeshSensitiveBound = 1e-4;  // sums over all tokens of terms of either sign
constexpr int64_t kMeshTokens = 1024;         // of the row whose layer outputs are compared

std::string index_of(const Shape& shape, size_t flat) {
  std::string text;
  auto rest = static_cast<int64_t>(flat);
  for (int dim = shape.rank() - 1; dim >= 0; --dim) {
    text = fmt::format("{}{}{}", rest % shape[dim], text.empty() ? "" : ", ", text);
    rest /= shape[dim];
  }
  return "[" + text + "]";
}

struct Differences {
  double largest = 0, largest_expected = 0, squares = 0, squares_expected = 0;
  size_t where = 0;
};

Differences differences(std::span<const float> got, std::span<const double> expected) {
  TRANSXSSM_CHECK(got.size() == expected.size(), "{} elements beside {}", got.size(), expected.size());
  Differences d;
  for (size_t i = 0; i < got.size(); ++i) {
    double difference = std::abs(static_cast<double>(got[i]) - expected[i]);
    if (!std::isfinite(difference)) difference = std::numeric_limits<double>::infinity();
    if (difference > d.largest) d.largest = difference, d.where = i;
    d.largest_expected = std::max(d.largest_expected, std::abs(expected[i]));
    d.squares += difference * difference;
    d.squares_expected += expected[i] * expected[i];
  }
  return d;
}

std::string bound_text(const std::optional<double>& bound) {
  if (!bound) return "-";
  return *bound == 0 ? "0" : fmt::format("{:.0e}", *bound);
}

double ratio(double difference, double scale) {
  return difference == 0 ? 0 : difference / scale;
}

double norm_of(std::span<const double> values) {
  double squares = 0;
  for (double v : values) squares += v * v;
  return std::sqrt(squares);
}

Comparison compare_number(const std::string& name, double got, double expected, double scale,
                          std::optional<double> bound) {
  return {.name = name,
          .error = ratio(std::abs(got - expected), scale),
          .bound = bound,
          .where = fmt::format("{:.9g} instead of {:.9g}", got, expected)};
}

bool is_sensitive(const std::string& parameter) {
  return parameter.ends_with("A_log") || parameter.ends_with("dt_bias");
}

std::vector<ComparisonClass> compare_trajectory(const GoldenFolder& golden, const GoldenResult& result) {
  ComparisonClass loss{.name = "loss", .measure = "nats"};
  ComparisonClass norm{.name = "grad norm", .measure = "relative"};
  ComparisonClass weights{.name = "final", .measure = "of the change"};
  const auto &losses = golden.expected.at("loss"), &norms = golden.expected.at("grad_norm");
  for (size_t s = 0; s < losses.size(); ++s) {
    const std::string step = fmt::format("step {}", s + 1);
    loss.comparisons.push_back(
        compare_number("loss of " + step, result.loss[s], losses[s], 1, kTrajectoryLossBound));
    norm.comparisons.push_back(
        compare_number("grad_norm of " + step, result.gradient_norm[s], norms[s], norms[s], std::nullopt));
  }
  size_t i = 0;
  for (const HfTensor& parameter : golden.parameters) {
    const LogicalTensor& got = result.tensors[i++];
    const std::vector<double>& expected = golden.expected.at(got.name);
    std::vector<double> change;
    for (const HfPart& part : parameter.parts)
      for (float start : golden.model.parameters.at(part.name))
        change.push_back(expected[change.size()] - static_cast<double>(start));
    Comparison c =
        compare_norm(got.name, got.shape, got.values, expected, norm_of(change), kTrajectoryWeightBound);
    weights.comparisons.push_back(std::move(c));
  }
  return {loss, norm, weights};
}

}  // namespace

Comparison compare_largest(const std::string& name, const Shape& shape, std::span<const float> got,
                           std::span<const double> expected, std::optional<double> bound) {
  const Differences d = differences(got, expected);
  return {name, ratio(d.largest, d.largest_expected), bound, index_of(shape, d.where)};
}

Comparison compare_norm(const std::string& name, const Shape& shape, std::span<const float> got,
                        std::span<const double> expected, double scale, std::optional<double> bound) {
  const Differences d = differences(got, expected);
  return {name, ratio(std::sqrt(d.squares), scale), bound, index_of(shape, d.where)};
}

std::vector<ComparisonClass> compare_golden(const GoldenFolder& golden, const GoldenResult& result,
                                            const Precision& precision) {
  const bool rounds = precision.activation == DType::bf16;
  if (rounds && (golden.trajectory || !golden.bf16_error))
    throw UsageError("{}: no bf16_error.json says what bf16 may cost here: use --set precision.compute=f32",
                     golden.path);
  if (golden.trajectory) return compare_trajectory(golden, result);
  const GoldenFolder::RoundingError cost = rounds ? *golden.bf16_error : GoldenFolder::RoundingError{};
  const auto bound = [&](double f32, std::optional<double> bf16) {
    return rounds ? bf16 : std::optional<double>(f32);
  };
  ComparisonClass hidden{.name = "hidden", .measure = "of the largest"};
  ComparisonClass logits{.name = "logits", .measure = "of the largest", .torch_float32 = kTorchLogits};
  ComparisonClass loss{.name = "loss", .measure = "relative"};
  ComparisonClass gradients{.name = "gradients", .measure = "of the norm", .torch_float32 = kTorchGradients};
  ComparisonClass together{.name = "all gradients", .measure = "of the norm"};
  if (rounds) logits.torch_float32 = gradients.torch_float32 = std::nullopt;
  double squares = 0, error_squares = 0;
  for (const HfTensor& parameter : golden.parameters)
    squares += std::pow(norm_of(golden.expected.at("grad." + parameter.name)), 2);
  const double floor = kGradientFloor * std::sqrt(squares);
  for (const LogicalTensor& got : result.tensors) {
    const auto found = golden.expected.find(got.name);
    if (found == golden.expected.end() || got.name.starts_with("grad.")) continue;
    const bool last = got.name == "logits";
    (last ? logits : hidden)
        .comparisons.push_back(compare_largest(
            got.name, got.shape, got.values, found->second,
            bound(kLogitsBound, last ? std::optional(kBf16Allowance * cost.logits) : std::nullopt)));
  }
  for (size_t i = result.tensors.size(); i-- > 0;) {  // complete from the last layer to the first
    const LogicalTensor& got = result.tensors[i];
    if (!got.name.starts_with("grad.")) continue;
    const std::vector<double>& expected = golden.expected.at(got.name);
    gradients.comparisons.push_back(compare_norm(got.name, got.shape, got.values, expected,
                                                 std::max(floor, norm_of(expected)),
                                                 bound(kGradientBound, std::nullopt)));
    error_squares += differences(got.values, expected).squares;
  }
  const double expected_loss = golden.expected.at("loss")[0];
  loss.comparisons.push_back(
      compare_number("loss", result.loss[0], expected_loss, std::abs(expected_loss),
                     bound(kLossBound, std::max(kBf16Allowance * cost.loss, kBf16Unit))));
  if (rounds)
    together.comparisons.push_back({.name = "all gradients together",
                                    .error = std::sqrt(error_squares / squares),
                                    .bound = kBf16Allowance * cost.gradients,
                                    .where = "all parameters"});
  return {hidden, logits, loss, gradients, together};
}

MeshRun run_mesh(const TrainConfig& config, int64_t steps, Communicator& world, Stream& stream) {
  const TrainingData data = open_training_data(config, DataFiles(config, world, nullptr));
  Trainer trainer(config, world, stream);
  MeshRun run;
  run.weights = gather_parameters(trainer, &Parameter::weight);
  {
    LayerRecorder recorder(trainer, stream, 1, std::min(kMeshTokens, config.data().sequence_length()), false);
    for (int64_t step = 0; step < steps; ++step) {
      data.fill(step * config.parallel().global_batch() + trainer.first_row(), trainer.batch());
      const StepResult r = trainer.step();
      run.loss.push_back(r.loss);
      run.gradient_norm.push_back(r.gradient_norm);
      if (step > 0) continue;
      run.layers = recorder.gather();
      run.gradients = gather_parameters(trainer, &Parameter::gradient);
    }
  }
  return run;
}

std::vector<ComparisonClass> compare_meshes(const MeshRun& mesh, const MeshRun& alone) {
  ComparisonClass weights{.name = "weights at the start", .measure = "of the norm"};
  ComparisonClass layers{.name = "layer outputs, step 1", .measure = "of the norm"};
  ComparisonClass loss{.name = "loss, step 1", .measure = "relative"};
  ComparisonClass gradients{.name = "gradients, step 1", .measure = "of the norm"};
  ComparisonClass norm{.name = "grad norm, step 1", .measure = "relative"};
  ComparisonClass later{.name = fmt::format("steps 2 to {}", alone.loss.size()), .measure = "relative"};
  const auto compare = [](const LogicalTensor& got, const LogicalTensor& expected, double bound,
                          const std::string& name) {
    const std::vector<double> values(expected.values.begin(), expected.values.end());
    return compare_norm(name, got.shape, got.values, values, norm_of(values), bound);
  };
  for (size_t i = 0; i < alone.weights.size(); ++i)
    weights.comparisons.push_back(compare(mesh.weights[i], alone.weights[i], 0, alone.weights[i].name));
  for (size_t i = 0; i < alone.layers.size(); ++i)
    layers.comparisons.push_back(
        compare(mesh.layers[i], alone.layers[i], kMeshBound, fmt::format("output of layer {} in step 1", i)));
  for (size_t i = alone.gradients.size(); i-- > 0;) {  // complete from the last layer to the first
    const std::string& name = alone.gradients[i].name;
    gradients.comparisons.push_back(compare(mesh.gradients[i], alone.gradients[i],
                                            is_sensitive(name) ? kMeshSensitiveBound : kMeshBound,
                                            fmt::format("gradient of {} in step 1", name)));
  }
  for (size_t s = 0; s < alone.loss.size(); ++s) {
    const auto add = [&](ComparisonClass& target, const char* what, double got, double expected) {
      target.comparisons.push_back(compare_number(fmt::format("{} of step {}", what, s + 1), got, expected,
                                                  std::abs(expected), kMeshBound));
    };
    add(s == 0 ? loss : later, "loss", mesh.loss[s], alone.loss[s]);
    add(s == 0 ? norm : later, "gradient norm", mesh.gradient_norm[s], alone.gradient_norm[s]);
  }
  return {weights, layers, loss, gradients, norm, later};
}

const Comparison* first_wrong(std::span<const ComparisonClass> classes) {
  for (const ComparisonClass& c : classes)
    for (const Comparison& comparison : c.comparisons)
      if (!comparison.good()) return &comparison;
  return nullptr;
}

std::string to_text(std::span<const ComparisonClass> classes) {
  const bool with_torch = std::any_of(classes.begin(), classes.end(),
                                      [](const ComparisonClass& c) { return c.torch_float32.has_value(); });
  const auto row = [&](const std::string& name, const std::string& count, const std::string& error,
                       const std::string& bound, const std::string& torch, const std::string& where) {
    return fmt::format("{:<22} {:>5}  {:>11}  {:>7}  {}{}\n", name, count, error, bound,
                       with_torch ? fmt::format("{:>15}  ", torch) : "", where);
  };
  const auto severity = [](const Comparison& c) {  // NaN and what breaks a bound of zero come first
    if (std::isnan(c.error)) return std::numeric_limits<double>::infinity();
    return c.error == 0 ? 0 : c.error / c.bound.value_or(1);
  };
  std::string text = row("", "count", "worst error", "bound", "PyTorch float32", "where");
  for (const ComparisonClass& c : classes) {
    if (c.comparisons.empty()) continue;
    const Comparison* worst = &c.comparisons.front();
    for (const Comparison& comparison : c.comparisons)
      if (severity(comparison) > severity(*worst)) worst = &comparison;
    text +=
        row(c.name, std::to_string(c.comparisons.size()), fmt::format("{:.2e}", worst->error),
            bound_text(worst->bound), c.torch_float32 ? fmt::format("{:.0e}", *c.torch_float32) : "-",
            worst->error == 0 ? "equal" : fmt::format("{}: {} ({})", worst->name, worst->where, c.measure));
  }
  return text;
}

namespace {

// Rank 0 says how it went.
void finish(Communicator& world, std::span<const ComparisonClass> classes) {
  std::string message;
  if (world.rank() == 0) {
    fmt::print("{}", to_text(classes));
    if (const Comparison* wrong = first_wrong(classes))
      message = fmt::format("{} is the first to differ: error {:.2e}, bound {}, farthest off: {}",
                            wrong->name, wrong->error, bound_text(wrong->bound), wrong->where);
    else
      fmt::print("all within their bounds\n");
    std::fflush(stdout);
  }
  auto size = static_cast<int64_t>(message.size());
  world.broadcast(Tensor(&size, DType::i64, {1}), 0);
  if (size == 0) return;
  message.resize(static_cast<size_t>(size));
  world.broadcast(Tensor(message.data(), DType::u8, {size}), 0);
  throw NumericsError("{}", message);
}

void print_trajectory(const GoldenFolder& golden, const GoldenResult& result) {
  fmt::print("step  learning rate          loss     reference     grad norm     reference\n");
  const auto &loss = golden.expected.at("loss"), &norm = golden.expected.at("grad_norm");
  for (size_t s = 0; s < loss.size(); ++s)
    fmt::print("{:>4}  {:>13.4g}  {:>12.8f}  {:>12.8f}  {:>12.8f}  {:>12.8f}\n", s + 1,
               golden.learning_rate[s], result.loss[s], loss[s], result.gradient_norm[s], norm[s]);
}

}  // namespace

void check_golden(const GoldenFolder& golden, const TrainConfig& config, Communicator& world, Stream& stream,
                  OutputFiles* write) {
  const GoldenResult result = compute_golden(golden, config, world, stream);
  std::vector<ComparisonClass> classes;
  if (world.rank() == 0) {
    if (write != nullptr) {
      write_golden(posix_file_system(), write->temporary(0), golden, result);
      write->publish();
    }
    if (golden.trajectory) print_trajectory(golden, result);
    classes = compare_golden(golden, result, precision_of(config, stream.device()));
  }
  finish(world, classes);
}

void check_mesh_run(const TrainConfig& config, const TrainConfig& alone, int64_t steps, Communicator& world,
                    Stream& stream) {
  const MeshRun mesh = run_mesh(config, steps, world, stream);
  // The others wait for as long as one rank takes for the work of all.
  world.set_timeout(std::chrono::hours(24));
  std::vector<ComparisonClass> classes;
  if (world.rank() == 0) {
    fmt::print("{} steps on {} and on one rank\n", steps, mesh_shape(config).to_string());
    std::fflush(stdout);
    const auto one = single_rank();
    attach_device(*one, stream);
    classes = compare_meshes(mesh, run_mesh(alone, steps, *one, stream));
  }
  finish(world, classes);
}

}  // namespace transxssm
