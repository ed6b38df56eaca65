#include "launch/benchmark.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/peak.h"
#include "launch/benchmark_costs.h"
#include "launch/benchmark_steps.h"
#include "launch/plan.h"
#include "launch/trace_file.h"
#include "model/accounting.h"
#include "runtime/cpu_features.h"
#include "runtime/format.h"

namespace transxssm {
namespace {

using nlohmann::json;

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

  void take_higher_peaks(const Machine& other) {
    peaks.copy_bandwidth = std::max(peaks.copy_bandwidth, other.peaks.copy_bandwidth);
    peaks.flops_f32 = std::max(peaks.flops_f32, other.peaks.flops_f32);
    peaks.flops_bf16 = std::max(peaks.flops_bf16, other.peaks.flops_bf16);
    peak_flops = std::max(peak_flops, other.peak_flops);
  }
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
  StepAllocations allocations;  // of rank 0, the last round
  ActivitySeconds activities;   // of rank 0, a step
};

// Tokens a second of the median of `steps` steps.
double measure(TimedTraining& training, int steps, Speed& speed) {
  std::vector<double> seconds;
  take_activity_seconds();
  const AllocationCounter counter;
  for (int i = 0; i < steps; ++i) seconds.push_back(training.step());
  speed.allocations = counter.count();
  speed.activities = take_activity_seconds();
  for (double& s : speed.activities.seconds) s /= steps;
  speed.step_seconds.insert(speed.step_seconds.end(), seconds.begin(), seconds.end());
  return static_cast<double>(training.tokens()) / median(seconds);
}

// Ours and a peer's, in turn.
struct Pairs {
  std::vector<double> ours, peers, ratios;  // tokens/s
};

std::string pairs_table(const Pairs& pairs) {
  std::string text = fmt::format("{:<10} {:>9} {:>9} {:>9}   of {} pairs in turn\n", "tokens/s", "median",
                                 "lowest", "highest", pairs.ratios.size());
  const auto row = [&](const char* name, const std::vector<double>& values, int digits) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    text += fmt::format("{:<10} {:>9.{}f} {:>9.{}f} {:>9.{}f}\n", name, median(values), digits, *low, digits,
                        *high, digits);
  };
  row("ours", pairs.ours, 0);
  row("peer", pairs.peers, 0);
  row("ratio", pairs.ratios, 2);
  return text;
}

}  // namespace

TrainConfig benchmark_config(const BenchmarkShape& shape, std::vector<std::string> overrides,
                             int world_size) {
  std::string preset = shape.preset, changes;
  struct Changed {
    const char *name, *preset, *fields;
  };
  for (const Changed& c : {Changed{"320m-8l", "transxssm-320m", "num_layers: 8"},
                           Changed{"llama-8l", "llama-320m", "num_layers: 8"},
                           Changed{"llama-tiny", "llama-320m",
                                   "vocab_size: 8192 num_layers: 8 d_model: 256 num_heads: 4 d_ff: 704"}}) {
    if (shape.preset == c.name) preset = c.preset, changes = c.fields;
  }
  const std::string text = fmt::format(
      "model {{ preset: '{}' {} max_position_embeddings: {} }} data {{ train {{ prefix: 'none' }} "
      "sequence_length: {} }} schedule {{ steps: 1000000 }} parallel {{ global_batch: {} }} "
      "precision {{ compute: '{}' }} log {{ run_directory: 'none' }}",
      preset, changes, shape.tokens, shape.tokens, shape.rows, shape.dtype);
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
  Machine machine = describe_machine(stream, dtype, world);
  const Plan plan = make_plan(config);
  TimedTraining training(config, worker, stream);
  for (int i = 0; i < options.warmup; ++i) training.step();

  Speed speed;
  Pairs pairs;
  world.set_timeout(std::chrono::hours(24));  // ranks wait while the peer runs on rank 0
  for (int round = 0; round < (options.against.empty() ? 1 : options.rounds); ++round) {
    pairs.ours.push_back(measure(training, options.steps, speed));
    if (options.against.empty()) continue;
    if (speaks) {
      pairs.peers.push_back(run_peer(options.against));
      pairs.ratios.push_back(pairs.ours.back() / pairs.peers.back());
    }
    world.barrier();
    training.step();  // caches and clocks after the pause
  }
  const std::vector<TraceEvent> events = training.trace_step().events;
  machine.take_higher_peaks(describe_machine(stream, dtype, world));  // what else ran may have held one down
  if (options.trace) write_trace(options.trace_file, events, world, worker.host());
  if (!speaks) return;

  const double tokens_per_second = median(pairs.ours), step = median(speed.step_seconds);
  const double flops = tokens_per_second * plan.flops_per_token;
  const std::vector<OperationTime> operations = operation_times(events, machine.peaks, dtype);
  const int64_t allocated = plan.stages.front().memory.total();
  const StepAllocations& steps = speed.allocations;
  std::string text = fmt::format(
      "bench train {} ({} parameters), {} rows of {} tokens, {}, {} on {}\n"
      "machine    {}: {:.1f} GB/s copied, {:.1f} GFLOP/s f32, {:.1f} GFLOP/s bf16 a rank (measured)\n"
      "speed      {:.0f} tokens/s, {:.2f} ms a step (median of {}), {:.1f} GFLOP/s = {:.1f} % of the {}\n"
      "memory     {} allocated before step 1, {} scratch; allocated in {} steps: {} tensors of {}, {} of "
      "fresh "
      "pages\n",
      shape.preset, format_count(plan.num_parameters), shape.rows, shape.tokens, dtype_name(dtype),
      plan.mesh.to_string(), worker.host(), machine.name, machine.peaks.copy_bandwidth / 1e9,
      machine.peaks.flops_f32 / 1e9, machine.peaks.flops_bf16 / 1e9, tokens_per_second, 1e3 * step,
      speed.step_seconds.size(), flops / 1e9, 100 * flops / machine.peak_flops,
      machine.vendor ? "vendor's dense peak (MFU)" : "measured matrix peak", format_bytes(double(allocated)),
      format_bytes(static_cast<double>(stream.scratch_bytes())), options.steps, steps.arenas,
      format_bytes(static_cast<double>(steps.arena_bytes)),
      format_bytes(static_cast<double>(steps.fresh_bytes)));
  text += "rank 0     ";
  for (int a = 0; a < kNumActivities; ++a)
    text += fmt::format("{}{} {:.1f} %", a == 0 ? "" : ", ", activity_name(static_cast<Activity>(a)),
                        100 * speed.activities.seconds[static_cast<size_t>(a)] / speed.activities.total());
  text += "\n" + operations_text(operations, step);
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
                 {"allocated_in_steps",
                  {{"steps", options.steps},
                   {"arenas", steps.arenas},
                   {"arena_bytes", steps.arena_bytes},
                   {"fresh_bytes", steps.fresh_bytes}}},
                 {"operations", operations_json(operations)}};
  for (int a = 0; a < kNumActivities; ++a)
    result["activities"][activity_name(static_cast<Activity>(a))] =
        speed.activities.seconds[static_cast<size_t>(a)];
  if (!options.against.empty()) {
    text += pairs_table(pairs);
    result["against"] = {{"command", options.against},
                         {"peer_tokens_per_s", pairs.peers},
                         {"ours_tokens_per_s", pairs.ours},
                         {"ratios", pairs.ratios},
                         {"ratio", median(pairs.ratios)}};
  }
  if (options.json != nullptr) options.json->publish_text(result.dump(2) + "\n");
  if (options.markdown != nullptr) {
    const std::string caption =
        fmt::format("{}, {} x {} tokens a step, {}, {}: {:.0f} tokens/s, {:.0f} % of {:.0f} GFLOP/s\n\n",
                    shape.preset, shape.rows, shape.tokens, dtype_name(dtype), machine.name,
                    tokens_per_second, 100 * flops / machine.peak_flops, machine.peak_flops / 1e9);
    options.markdown->publish_text(caption + operations_markdown(operations, step));
  }
  fmt::print("{}", text);
  fmt::print("{}\n", result.dump());
}

}  // namespace transxssm
