// `transxssm bench kernels`: each operation by itself, at the sizes it has in a model.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/cost.h"
#include "kernels/peak.h"
#include "launch/benchmark.h"
#include "launch/operands.h"
#include "runtime/cpu_features.h"

namespace transxssm {
namespace {

constexpr int64_t kLossTokens = 2048;  // of a chunk of the head

struct Timing {
  std::string name;
  OperationCost cost;
  double seconds = 0;  // of one call, the median
};

// Makes the operands of one operation after the other and times it; the memory of each goes before the next.
class OperationTimer {
 public:
  OperationTimer(const ModelConfig& model, int64_t rows, int64_t tokens, DType dtype,
                 const std::string& filter, Stream& stream)
      : m_(model),
        b_(rows),
        t_(tokens),
        bt_(rows * tokens),
        d_(model.d_model),
        dtype_(dtype),
        filter_(filter),
        stream_(stream),
        operands_(stream) {}

  std::vector<Timing> run_all();

 private:
  Tensor act(const Shape& shape) { return operands_.numbers(dtype_, shape); }
  Tensor f32(const Shape& shape) { return operands_.numbers(DType::f32, shape); }
  Tensor ids(const Shape& shape, int64_t below) { return operands_.ids(shape, below); }
  template <class MakeArgs>
  void time(const std::string& name, MakeArgs&& make_args);
  template <class Call>
  void time_calls(const std::string& name, const OperationCost& least, Call&& call);

  void products(const std::string& name, int64_t out, int64_t in);
  void norms();
  void feed_forward();
  void scan();
  void attention();
  void mamba();
  void head();
  void optimizer();

  const ModelConfig m_;
  const int64_t b_, t_, bt_, d_;
  const DType dtype_;
  const std::string filter_;
  Stream& stream_;
  Operands operands_;
  std::vector<Timing> timings_;
};

template <class MakeArgs>
void OperationTimer::time(const std::string& name, MakeArgs&& make_args) {
  if (name.find(filter_) == std::string::npos) return;
  operands_.clear();
  const auto args = make_args();
  time_calls(name, cost(args), [&] { run(stream_, args); });
}

// The median of five batches of calls, each of some 50 ms; on a device by its own clock.
template <class Call>
void OperationTimer::time_calls(const std::string& name, const OperationCost& least, Call&& call) {
  const auto batch = [&](int64_t calls) {
    const auto begin = std::chrono::steady_clock::now();
    const auto first = stream_.queue() ? stream_.queue()->mark() : nullptr;
    for (int64_t i = 0; i < calls; ++i) call();
    if (first) return stream_.queue()->mark()->seconds_since(*first);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  batch(1);  // scratch memory, plans, page faults
  const int64_t calls =
      std::clamp<int64_t>(static_cast<int64_t>(0.05 / std::max(1e-7, batch(2) / 2)), 1, 10000);
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) seconds.push_back(batch(calls) / static_cast<double>(calls));
  std::sort(seconds.begin(), seconds.end());
  timings_.push_back({name, least, seconds[seconds.size() / 2]});
}

// y = x W^T, dx = dy W, dW += dy^T x
void OperationTimer::products(const std::string& name, int64_t out, int64_t in) {
  time("gemm " + name + " forward", [&] {
    return Gemm{.a = act({bt_, in}), .b = act({out, in}), .c = act({bt_, out}), .transpose_b = true};
  });
  time("gemm " + name + " input gradient", [&] {
    return Gemm{.a = act({bt_, out}), .b = act({out, in}), .c = act({bt_, in})};
  });
  time("gemm " + name + " weight gradient", [&] {
    return Gemm{.a = act({bt_, out}),
                .b = act({bt_, in}),
                .c = f32({out, in}),
                .transpose_a = true,
                .accumulate = true};
  });
}

void OperationTimer::norms() {
  const Shape x = {bt_, d_};
  time("rmsnorm+residual forward", [&] {
    return RmsNormForward{.x = act(x),
                          .branch = act(x),
                          .residual_weight = f32({d_}),
                          .sum = act(x),
                          .weight = f32({d_}),
                          .y = act(x),
                          .rstd = f32({bt_})};
  });
  time("rmsnorm+residual backward", [&] {
    return RmsNormBackward{.dy = act(x),
                           .d_sum = act(x),
                           .sum = act(x),
                           .rstd = f32({bt_}),
                           .weight = f32({d_}),
                           .x = act(x),
                           .residual_weight = f32({d_}),
                           .dx = act(x),
                           .d_branch = act(x),
                           .d_weight = f32({d_}),
                           .d_residual_weight = f32({d_})};
  });
  time("residual forward",
       [&] { return ResidualForward{.x = act(x), .branch = act(x), .weight = f32({d_}), .y = act(x)}; });
  time("residual backward", [&] {
    return ResidualBackward{
        .dy = act(x), .x = act(x), .weight = f32({d_}), .dx = act(x), .d_weight = f32({d_})};
  });
}

void OperationTimer::feed_forward() {
  if (m_.d_ff == 0) return;
  const Shape y = {bt_, m_.d_ff};
  time("swiglu forward", [&] {
    const Tensor projected = act({bt_, 2 * m_.d_ff});
    return SwigluForward{projected.slice(1, 0, m_.d_ff), projected.slice(1, m_.d_ff, m_.d_ff), act(y)};
  });
  time("swiglu backward", [&] {
    const Tensor projected = act({bt_, 2 * m_.d_ff}), gradient = act({bt_, 2 * m_.d_ff}), dy = act(y);
    return SwigluBackward{.gate = projected.slice(1, 0, m_.d_ff),
                          .up = projected.slice(1, m_.d_ff, m_.d_ff),
                          .dy = dy,
                          .d_gate = gradient.slice(1, 0, m_.d_ff),
                          .d_up = gradient.slice(1, m_.d_ff, m_.d_ff),
                          .y = dy};
  });
}

void OperationTimer::scan() {
  const int64_t h = m_.ssd_heads(), p = m_.head_width(), n = m_.d_state, g = m_.groups();
  const auto input = [&] {
    SsdInput in{.x = act({b_, t_, h, p}),
                .b = act({b_, t_, g, n}),
                .c = act({b_, t_, g, n}),
                .u = f32({b_, t_, h}),
                .dt_bias = f32({h}),
                .a_log = f32({h}),
                .chunk = m_.chunk};
    if (m_.ssd_position == SsdPosition::rope) {
      in.cos = f32({m_.chunk + 1, n / 2});
      in.sin = f32({m_.chunk + 1, n / 2});
    }
    return in;
  };
  const Shape states = {b_, ssd_num_chunks(t_, m_.chunk), h, p, n};
  time("ssd scan forward", [&] {
    return SsdForward{.in = input(), .y = act({b_, t_, h, p}), .chunk_states = act(states)};
  });
  time("ssd scan backward", [&] {
    return SsdBackward{.in = input(),
                       .chunk_states = act(states),
                       .dy = act({b_, t_, h, p}),
                       .dx = act({b_, t_, h, p}),
                       .db = act({b_, t_, g, n}),
                       .dc = act({b_, t_, g, n}),
                       .du = f32({b_, t_, h}),
                       .d_dt_bias = f32({h}),
                       .d_a_log = f32({h})};
  });
}

void OperationTimer::attention() {
  const int64_t h = m_.num_heads, kv = m_.kv_heads(), p = m_.head_width();
  const Shape q = {b_, t_, h, p}, k = {b_, t_, kv, p};
  const double scale = 1 / std::sqrt(static_cast<double>(p));
  time("rope", [&] {
    return Rotary{.x = act({bt_, h + kv, p}),
                  .cos = f32({t_, p / 2}),
                  .sin = f32({t_, p / 2}),
                  .position = ids({bt_}, t_)};
  });
  time("attention forward", [&] {
    return AttentionForward{.q = act(q),
                            .k = act(k),
                            .v = act(k),
                            .out = act(q),
                            .log_sum_exp = f32({b_, h, t_}),
                            .scale = scale};
  });
  time("attention backward", [&] {
    return AttentionBackward{.q = act(q),
                             .k = act(k),
                             .v = act(k),
                             .out = act(q),
                             .log_sum_exp = f32({b_, h, t_}),
                             .d_out = act(q),
                             .dq = act(q),
                             .dk = act(k),
                             .dv = act(k),
                             .scale = scale};
  });
}

void OperationTimer::mamba() {
  const int64_t inner = m_.ssd_heads() * m_.head_width(), channels = inner + 2 * m_.groups() * m_.d_state;
  const Shape row = {b_, t_, channels}, x = {bt_, inner};
  if (m_.ssd_position == SsdPosition::conv1d) {
    time("conv1d forward", [&] {
      return Conv1dForward{
          .x = act(row), .weight = f32({channels, m_.conv_kernel}), .bias = f32({channels}), .y = act(row)};
    });
    time("conv1d backward", [&] {
      return Conv1dBackward{.x = act(row),
                            .weight = f32({channels, m_.conv_kernel}),
                            .bias = f32({channels}),
                            .dy = act(row),
                            .dx = act(row),
                            .d_weight = f32({channels, m_.conv_kernel}),
                            .d_bias = f32({channels})};
    });
  }
  if (!m_.ssd_gate) return;
  const int64_t width = inner / m_.groups();
  time("gated norm squares", [&] {
    return GatedNormSquares{.x = act(x), .z = act(x), .squares = f32({bt_, m_.groups()})};
  });
  time("gated norm dots", [&] {
    return GatedNormDots{
        .x = act(x), .z = act(x), .weight = f32({inner}), .dy = act(x), .dots = f32({bt_, m_.groups()})};
  });
  time("gated norm forward", [&] {
    return GatedNormForward{.x = act(x),
                            .z = act(x),
                            .weight = f32({inner}),
                            .squares = f32({bt_, m_.groups()}),
                            .group_width = width,
                            .y = act(x)};
  });
  time("gated norm backward", [&] {
    return GatedNormBackward{.x = act(x),
                             .z = act(x),
                             .weight = f32({inner}),
                             .squares = f32({bt_, m_.groups()}),
                             .dots = f32({bt_, m_.groups()}),
                             .group_width = width,
                             .dy = act(x),
                             .dx = act(x),
                             .dz = act(x),
                             .d_weight = f32({inner})};
  });
}

void OperationTimer::head() {
  const int64_t v = m_.vocab_size, n = std::min(bt_, kLossTokens);
  time("embedding forward", [&] { return EmbeddingForward{ids({bt_}, v), f32({v, d_}), act({bt_, d_})}; });
  time("embedding backward", [&] { return EmbeddingBackward{ids({bt_}, v), act({bt_, d_}), f32({v, d_})}; });
  time("cross-entropy statistics", [&] {
    return CrossEntropyStatistics{act({n, v}), ids({n}, v), f32({n}), f32({n}), f32({n})};
  });
  time("cross-entropy backward", [&] {
    return CrossEntropyBackward{.logits = act({n, v}),
                                .targets = ids({n}, v),
                                .valid = operands_.ones(n),
                                .max = f32({n}),
                                .sum = f32({n}),
                                .loss_scale = operands_.scalar(1.0 / static_cast<double>(n))};
  });
}

void OperationTimer::optimizer() {
  constexpr int64_t kElements = int64_t{1} << 24;
  time("adamw", [&] {
    AdamW args{.weight = f32({kElements}), .gradient = f32({kElements}), .exp_avg = f32({kElements})};
    args.exp_avg_sq = f32({kElements});
    zero(stream_, args.exp_avg_sq);
    if (dtype_ == DType::bf16) args.rounded = act({kElements});
    args.learning_rate = 1e-6;
    return args;
  });
  // Of all gradients, once a step.
  const auto reduce = [&](const std::string& name, auto&& call) {
    if (name.find(filter_) == std::string::npos) return;
    operands_.clear();
    const Tensor x = f32({kElements});
    time_calls(name, {static_cast<double>(x.num_bytes())}, [&] { call(x); });
  };
  reduce("sum of squares", [&](const Tensor& x) { sum_of_squares(stream_, x); });
  reduce("count not finite", [&](const Tensor& x) { count_not_finite(stream_, x); });
}

std::vector<Timing> OperationTimer::run_all() {
  const int64_t p = m_.head_width(), inner = m_.ssd_heads() * p;
  const bool has_attention = m_.num_attention_layers() > 0,
             has_ssd = m_.num_attention_layers() < m_.num_layers;
  if (has_ssd) {
    products("ssd projection", (m_.ssd_gate ? inner : 0) + 2 * m_.groups() * m_.d_state + inner, d_);
    products("ssd output", d_, inner);
  }
  if (has_attention) {
    products("attention projection", (m_.num_heads + 2 * m_.kv_heads()) * p, d_);
    products("attention output", d_, m_.num_heads * p);
  }
  if (m_.d_ff > 0) {
    products("gate and up", 2 * m_.d_ff, d_);
    products("down", d_, m_.d_ff);
  }
  norms();
  feed_forward();
  if (has_ssd) scan();
  if (has_attention) attention();
  if (has_ssd) mamba();
  head();
  optimizer();
  return std::move(timings_);
}

}  // namespace

void benchmark_operations(const BenchmarkShape& shape, const std::string& filter, OutputFiles* json_file,
                          Stream& stream) {
  const TrainConfig config = benchmark_config(shape, {}, 1);
  const DType dtype = shape.dtype == "bf16" ? DType::bf16 : DType::f32;
  const MachinePeaks peaks = measure_peaks(stream);
  const std::string machine = stream.device().is_cpu()
                                  ? fmt::format("CPU, {}, {} threads", cpu_level(), stream.num_threads())
                                  : device_runtime().describe(stream.device().index);
  fmt::print(
      "bench kernels {}, {} rows of {} tokens, {}\n"
      "machine    {}: {:.1f} GB/s copied, {:.1f} GFLOP/s f32, {:.1f} GFLOP/s bf16 (measured)\n"
      "{:<36} {:>11} {:>9} {:>10} {:>11} {:>9}\n",
      shape.preset, shape.rows, shape.tokens, dtype_name(dtype), machine, peaks.copy_bandwidth / 1e9,
      peaks.flops_f32 / 1e9, peaks.flops_bf16 / 1e9, "operation", "us", "GB/s", "GFLOP/s", "floor us",
      "of floor");
  nlohmann::json list = nlohmann::json::array();
  OperationTimer timer(model_config(config), shape.rows, shape.tokens, dtype, filter, stream);
  for (const Timing& t : timer.run_all()) {
    const double floor = std::max(t.cost.bytes / peaks.copy_bandwidth, t.cost.flops / peaks.flops(dtype));
    fmt::print("{:<36} {:>11.1f} {:>9.1f} {:>10.1f} {:>11.1f} {:>8.0f}%\n", t.name, 1e6 * t.seconds,
               t.cost.bytes / t.seconds / 1e9, t.cost.flops / t.seconds / 1e9, 1e6 * floor,
               100 * floor / t.seconds);
    list.push_back({{"name", t.name},
                    {"seconds", t.seconds},
                    {"bytes", t.cost.bytes},
                    {"flops", t.cost.flops},
                    {"floor_seconds", floor}});
  }
  const nlohmann::json result = {{"preset", shape.preset},
                                 {"rows", shape.rows},
                                 {"tokens", shape.tokens},
                                 {"dtype", dtype_name(dtype)},
                                 {"machine", machine},
                                 {"copy_bytes_per_s", peaks.copy_bandwidth},
                                 {"peak_flops_f32", peaks.flops_f32},
                                 {"peak_flops_bf16", peaks.flops_bf16},
                                 {"operations", list}};
  if (json_file != nullptr) json_file->publish_text(result.dump(2) + "\n");
  fmt::print("{}\n", result.dump());
}

}  // namespace transxssm
