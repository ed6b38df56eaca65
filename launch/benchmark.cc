#include "launch/benchmark.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/plan.h"
#include "launch/trace_file.h"
#include "launch/trainer.h"
#include "model/accounting.h"
#include "runtime/cpu_features.h"
#include "runtime/file_system.h"
#include "runtime/format.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

using nlohmann::json;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Tokens cost the same whatever they say.
void fill_random(const Batch& batch, int64_t vocabulary, int64_t first_row) {
  const Rng rng(1, "benchmark");
  const int64_t tokens = batch.tokens();
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const auto id = [&](int64_t t) {
      return static_cast<int32_t>(rng.below(static_cast<uint64_t>((first_row + row) * (tokens + 1) + t),
                                            static_cast<uint64_t>(vocabulary)));
    };
    for (int64_t t = 0; t < tokens; ++t) {
      batch.input.at<int32_t>({row, t}) = id(t);
      batch.target.at<int32_t>({row, t}) = id(t + 1);
      batch.position.at<int32_t>({row, t}) = static_cast<int32_t>(t);
      batch.document.at<int32_t>({row, t}) = 0;
      batch.valid.at<uint8_t>({row, t}) = 1;
    }
  }
}

// Dense bf16 FLOP/s that the vendor states for one such GPU; 0 where that is not known.
double vendor_peak(const std::string& device) {
  for (const char* name : {"H100", "H200", "GH200"})
    if (device.find(name) != std::string::npos) return 989.4e12;
  return device.find("A100") != std::string::npos ? 312e12 : 0;
}

struct Machine {
  std::string name;
  MachinePeaks peaks;     // of one rank
  double peak_flops = 0;  // of all ranks: the vendor's on a GPU whose figure is known, else measured
  bool vendor = false;
};

Machine describe_machine(Stream& stream, DType dtype, Communicator& world) {
  Machine m;
  m.peaks = measure_peaks(stream);
  const Device device = stream.device();
  m.name = device.is_cpu() ? fmt::format("CPU, {}, {} threads a rank", cpu_level(), stream.num_threads())
                           : device_runtime().describe(device.index);
  double peak = m.peaks.flops(dtype);
  if (!device.is_cpu() && dtype == DType::bf16 && vendor_peak(m.name) > 0) {
    peak = vendor_peak(m.name);
    m.vendor = true;
  }
  world.all_reduce(Tensor(&peak, DType::f64, {1}));
  m.peak_flops = peak;
  return m;
}

struct Speed {
  std::vector<double> step_seconds;
  ActivitySeconds activities;  // of rank 0, a step
};

class TimedTraining {
 public:
  TimedTraining(const TrainConfig& config, Worker& worker, Stream& stream)
      : config_(config), worker_(worker), stream_(stream), trainer_(config, worker.world(), stream) {
    fill_random(trainer_.batch(), config.model().vocab_size(), trainer_.first_row());
  }

  double step() {
    const auto begin = std::chrono::steady_clock::now();
    trainer_.step();
    stream_.synchronize();
    worker_.world().barrier();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  // Tokens a second of the median of `steps` steps.
  double measure(int steps, Speed& speed) {
    std::vector<double> seconds;
    take_activity_seconds();
    for (int i = 0; i < steps; ++i) seconds.push_back(step());
    speed.activities = take_activity_seconds();
    for (double& s : speed.activities.seconds) s /= steps;
    speed.step_seconds.insert(speed.step_seconds.end(), seconds.begin(), seconds.end());
    return static_cast<double>(tokens_per_step(config_)) / median(seconds);
  }

  std::vector<TraceEvent> trace_step() {
    Trace trace;
    step();
    return trace.take();
  }

 private:
  const TrainConfig& config_;
  Worker& worker_;
  Stream& stream_;
  Trainer trainer_;
};

std::string operation_table(const std::vector<OperationTime>& operations, double step_seconds) {
  std::string text = fmt::format("{:<24} {:>6} {:>10} {:>7} {:>10} {:>9}\n", "operation", "calls",
                                 "ms a step", "share", "floor ms", "of floor");
  double seconds = 0, floor = 0;
  const auto row = [&](const std::string& name, int64_t calls, double s, double f) {
    text += fmt::format("{:<24} {:>6} {:>10.2f} {:>6.1f}% {:>10.2f} {:>8.0f}%\n", name, calls, 1e3 * s,
                        100 * s / step_seconds, 1e3 * f, s > 0 ? 100 * f / s : 0);
  };
  for (const OperationTime& o : operations) {
    row(o.name, o.calls, o.seconds, o.floor_seconds);
    seconds += o.seconds, floor += o.floor_seconds;
  }
  row("all operations", 0, seconds, floor);
  return text;
}

json operations_json(const std::vector<OperationTime>& operations) {
  json list = json::array();
  for (const OperationTime& o : operations)
    list.push_back(
        {{"name", o.name}, {"calls", o.calls}, {"seconds", o.seconds}, {"floor_seconds", o.floor_seconds}});
  return list;
}

}  // namespace

TrainConfig benchmark_config(const BenchmarkShape& shape, std::vector<std::string> overrides,
                             int world_size) {
  std::string preset = shape.preset, layers;
  for (const auto& [name, whole] : {std::pair{"320m-8l", "transxssm-320m"}, {"llama-8l", "llama-320m"}}) {
    if (shape.preset != name) continue;
    preset = whole;
    layers = " num_layers: 8";
  }
  const std::string text = fmt::format(
      "model {{ preset: '{}'{} max_position_embeddings: {} }} data {{ train {{ prefix: 'none' }} "
      "sequence_length: {} }} schedule {{ steps: 1000000 }} parallel {{ global_batch: {} }} "
      "precision {{ compute: '{}' }} log {{ run_directory: 'none' }}",
      preset, layers, shape.tokens, shape.tokens, shape.rows, shape.dtype);
  const bool said = std::any_of(overrides.begin(), overrides.end(), [](const std::string& o) {
    return o.starts_with("parallel.microbatch_size");
  });
  // One microbatch of all a replica's rows, unless told otherwise.
  TrainConfig config = parse_config(text, "--preset " + shape.preset, overrides, world_size);
  if (said || config.parallel().pp() > 1) return config;
  overrides.push_back(
      fmt::format("parallel.microbatch_size={}", shape.rows / std::max(1, config.parallel().dp())));
  return parse_config(text, "--preset " + shape.preset, overrides, world_size);
}

std::vector<OperationTime> operation_times(const std::vector<TraceEvent>& events, const MachinePeaks& peaks,
                                           DType dtype) {
  std::map<std::string, OperationTime> by_name;
  for (const TraceEvent& e : events) {
    if (e.bytes == 0 && e.flops == 0) continue;
    OperationTime& o = by_name[e.name];
    o.name = e.name;
    ++o.calls;
    o.seconds += e.end - e.begin;
    o.floor_seconds += std::max(e.bytes / peaks.copy_bandwidth, e.flops / peaks.flops(dtype));
  }
  std::vector<OperationTime> operations;
  for (auto& [name, o] : by_name) operations.push_back(std::move(o));
  std::sort(operations.begin(), operations.end(),
            [](const OperationTime& a, const OperationTime& b) { return a.seconds > b.seconds; });
  return operations;
}

double run_peer(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw UsageError("--against: {} cannot be started", command);
  std::string output;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, n);
  const int status = pclose(pipe);
  if (status != 0)
    throw UsageError("--against: {} ended with {}", command,
                     WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                       : fmt::format("signal {}", WTERMSIG(status)));
  std::optional<double> speed;
  for (size_t begin = 0; begin < output.size();) {
    const size_t end = std::min(output.find('\n', begin), output.size());
    const json line = json::parse(output.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains("tokens_per_s") && line["tokens_per_s"].is_number())
      speed = line["tokens_per_s"].get<double>();
    begin = end + 1;
  }
  if (!speed || !(*speed > 0))
    throw UsageError("--against: {} printed no line of JSON with a positive tokens_per_s", command);
  return *speed;
}

void benchmark_training(const TrainConfig& config, const BenchmarkShape& shape,
                        const TrainBenchmarkOptions& options, Worker& worker, Stream& stream) {
  Communicator& world = worker.world();
  const bool speaks = world.rank() == 0;
  const DType dtype = precision_of(config, stream.device()).activation;
  const Machine machine = describe_machine(stream, dtype, world);
  const Plan plan = make_plan(config);
  TimedTraining training(config, worker, stream);
  for (int i = 0; i < options.warmup; ++i) training.step();

  Speed speed;
  std::vector<double> ours, peers, ratios;
  world.set_timeout(std::chrono::hours(24));  // ranks wait while the peer runs on rank 0
  for (int round = 0; round < (options.against.empty() ? 1 : options.rounds); ++round) {
    ours.push_back(training.measure(options.steps, speed));
    if (options.against.empty()) continue;
    if (speaks) {
      peers.push_back(run_peer(options.against));
      ratios.push_back(ours.back() / peers.back());
    }
    world.barrier();
    training.step();  // caches and clocks after the pause
  }
  const std::vector<TraceEvent> events = training.trace_step();
  if (!options.trace.empty()) write_trace(options.trace, events, world, worker.host());
  if (!speaks) return;

  const double tokens_per_second = median(ours), step = median(speed.step_seconds);
  const double flops = tokens_per_second * plan.flops_per_token;
  const std::vector<OperationTime> operations = operation_times(events, machine.peaks, dtype);
  const int64_t allocated = plan.stages.front().memory.total();
  std::string text = fmt::format(
      "bench train {} ({} parameters), {} rows of {} tokens, {}, {} on {}\n"
      "machine    {}: {:.1f} GB/s copied, {:.1f} GFLOP/s f32, {:.1f} GFLOP/s bf16 a rank (measured)\n"
      "speed      {:.0f} tokens/s, {:.2f} ms a step (median of {}), {:.1f} GFLOP/s = {:.1f} % of the {}\n"
      "memory     {} allocated before step 1, {} scratch\n",
      shape.preset, format_count(plan.num_parameters), shape.rows, shape.tokens, dtype_name(dtype),
      plan.mesh.to_string(), worker.host(), machine.name, machine.peaks.copy_bandwidth / 1e9,
      machine.peaks.flops_f32 / 1e9, machine.peaks.flops_bf16 / 1e9, tokens_per_second, 1e3 * step,
      speed.step_seconds.size(), flops / 1e9, 100 * flops / machine.peak_flops,
      machine.vendor ? "vendor's dense peak (MFU)" : "measured matrix peak", format_bytes(double(allocated)),
      format_bytes(static_cast<double>(stream.scratch_bytes())));
  text += "rank 0     ";
  for (int a = 0; a < kNumActivities; ++a)
    text += fmt::format("{}{} {:.1f} %", a == 0 ? "" : ", ", activity_name(static_cast<Activity>(a)),
                        100 * speed.activities.seconds[static_cast<size_t>(a)] / speed.activities.total());
  text += "\n" + operation_table(operations, step);
  json result = {{"preset", shape.preset},
                 {"rows", shape.rows},
                 {"tokens", shape.tokens},
                 {"dtype", dtype_name(dtype)},
                 {"mesh", plan.mesh.to_string()},
                 {"machine", machine.name},
                 {"copy_bytes_per_s", machine.peaks.copy_bandwidth},
                 {"peak_flops_f32", machine.peaks.flops_f32},
                 {"peak_flops_bf16", machine.peaks.flops_bf16},
                 {"tokens_per_s", tokens_per_second},
                 {"step_seconds", speed.step_seconds},
                 {"flops_per_s", flops},
                 {"fraction_of_peak", flops / machine.peak_flops},
                 {"allocated_bytes", allocated},
                 {"scratch_bytes", stream.scratch_bytes()},
                 {"operations", operations_json(operations)}};
  for (int a = 0; a < kNumActivities; ++a)
    result["activities"][activity_name(static_cast<Activity>(a))] =
        speed.activities.seconds[static_cast<size_t>(a)];
  if (!ratios.empty()) {
    const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
    text += fmt::format(
        "ratio      {:.2f} (median of {} pairs in turn; {:.2f} to {:.2f}): ours {:.0f}, peer {:.0f} "
        "tokens/s\n",
        median(ratios), ratios.size(), *low, *high, median(ours), median(peers));
    result["against"] = {{"command", options.against},
                         {"peer_tokens_per_s", peers},
                         {"ours_tokens_per_s", ours},
                         {"ratios", ratios},
                         {"ratio", median(ratios)}};
  }
  fmt::print("{}", text);
  fmt::print("{}\n", result.dump());
  std::fflush(stdout);
  if (!options.json.empty()) write_file_atomically(posix_file_system(), options.json, result.dump(2) + "\n");
}

}  // namespace transxssm
