#include "launch/commands/bench.h"

#include <charconv>
#include <sstream>

#include "launch/benchmark.h"
#include "launch/device.h"
#include "launch/option_output.h"
#include "launch/trace_file.h"

namespace transxssm {
namespace {

Option preset_option() {
  return {.name = "--preset",
          .value = "NAME",
          .help =
              "a preset of the model (tiny, transxssm-320m, ...), 320m-8l or llama-8l (cut to 8 layers), "
              "or llama-tiny",
          .standard = "tiny"};
}

Option set_option(const std::string& example) {
  return {.name = "--set",
          .value = "PATH=VALUE",
          .help = "override one field of the configuration, such as " + example,
          .repeatable = true};
}

// `own`, between the model and what every benchmark has.
std::vector<Option> with_common_options(std::vector<Option> own) {
  std::vector<Option> all = {preset_option()};
  all.insert(all.end(), own.begin(), own.end());
  all.insert(
      all.end(),
      {{.name = "--dtype",
        .value = "TYPE",
        .help = "type of products and activations",
        .standard = "f32",
        .choices = {"f32", "bf16"}},
       {.name = "--threads", .value = "N", .help = "of a rank; 0: its share of the cores", .standard = "0"},
       {.name = "--device", .value = "auto|cpu|cuda|cuda:N", .help = "where to run", .standard = "auto"},
       {.name = "--json", .value = "FILE", .help = "write the result there too"},
       {.name = "--overwrite", .help = "replace files that are there"}});
  return all;
}

std::vector<Option> shape_options() {
  return with_common_options(
      {{.name = "--batch", .value = "ROWS", .help = "rows of a step, on all ranks together", .standard = "8"},
       {.name = "--seq", .value = "TOKENS", .help = "tokens of a row", .standard = "512"}});
}

BenchmarkShape shape_of(const Arguments& arguments) {
  return {.preset = arguments.text("--preset"),
          .rows = arguments.integer("--batch", 1, 1 << 24),
          .tokens = arguments.integer("--seq", 2, 1 << 24),
          .dtype = arguments.text("--dtype")};
}

int take_threads(const Arguments& arguments, Worker& worker) {
  return worker.take_threads(static_cast<int>(arguments.integer("--threads", 0, 1024)), true);
}

Stream make_stream(const Arguments& arguments, Worker& worker) {
  return Stream(choose_device(arguments.text("--device"), worker.local_rank()),
                take_threads(arguments, worker));
}

// "1024,2048"
std::vector<int64_t> lengths_of(const std::string& text) {
  std::vector<int64_t> lengths;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int64_t length = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), length);
    if (error != std::errc() || end != part.data() + part.size())
      throw UsageError("--seq: \"{}\" in \"{}\" is not a whole number", part, text);
    lengths.push_back(length);
  }
  return lengths;
}

int bench_train(const Arguments& arguments, Worker& worker) {
  const BenchmarkShape shape = shape_of(arguments);
  const TrainConfig config = benchmark_config(shape, arguments.list("--set"), worker.size());
  Stream stream = make_stream(arguments, worker);
  use_device_of(stream, worker);
  const bool overwrite = arguments.flag("--overwrite"), speaks = worker.rank() == 0;
  const auto open = [&](const char* name) {
    return option_output(speaks ? arguments.text(name) : "", overwrite);
  };
  const auto json = open("--json"), markdown = open("--markdown"),
             trace = open_trace(speaks ? arguments.text("--trace") : "", overwrite);
  benchmark_training(config, shape,
                     {.steps = static_cast<int>(arguments.integer("--steps", 1, 100000)),
                      .rounds = static_cast<int>(arguments.integer("--rounds", 1, 1000)),
                      .against = arguments.text("--against"),
                      .json = json.get(),
                      .markdown = markdown.get(),
                      .trace_file = trace.get(),
                      .trace = arguments.has("--trace")},
                     worker, stream);
  return 0;
}

int bench_length(const Arguments& arguments, Worker& worker) {
  const bool overwrite = arguments.flag("--overwrite");
  const auto json = option_output(arguments.text("--json"), overwrite);
  const auto plot = option_output(arguments.text("--plot"), overwrite);
  benchmark_lengths({.preset = arguments.text("--preset"),
                     .baseline = arguments.text("--baseline"),
                     .dtype = arguments.text("--dtype"),
                     .tokens = arguments.integer("--tokens", 2, int64_t{1} << 32),
                     .lengths = lengths_of(arguments.text("--seq")),
                     .whole_step = arguments.text("--microbatch") == "step",
                     .warmup = static_cast<int>(arguments.integer("--warmup", 0, 1000)),
                     .steps = static_cast<int>(arguments.integer("--steps", 1, 100000)),
                     .rounds = static_cast<int>(arguments.integer("--rounds", 1, 1000)),
                     .overrides = arguments.list("--set"),
                     .json = json.get(),
                     .plot = plot.get()},
                    worker, choose_device(arguments.text("--device"), worker.local_rank()),
                    take_threads(arguments, worker));
  return 0;
}

int bench_kernels(const Arguments& arguments, Worker& worker) {
  Stream stream = make_stream(arguments, worker);
  const auto json = option_output(arguments.text("--json"), arguments.flag("--overwrite"));
  benchmark_operations(shape_of(arguments), arguments.text("--filter"), json.get(), stream);
  return 0;
}

}  // namespace

std::vector<Command> bench_commands() {
  std::vector<Option> train = shape_options();
  train.insert(
      train.end(),
      {{.name = "--steps", .value = "N", .help = "timed steps, after two others", .standard = "6"},
       {.name = "--against",
        .value = "COMMAND",
        .help = "a peer that prints a JSON line with tokens_per_s; runs in turn with us"},
       {.name = "--rounds", .value = "N", .help = "pairs of ours and the peer's", .standard = "3"},
       {.name = "--markdown", .value = "FILE", .help = "write the time by operation as a table there"},
       {.name = "--trace", .value = "FILE", .help = "write a Chrome/Perfetto trace of one step"},
       set_option("parallel.tp=2")});
  std::vector<Option> length = with_common_options(
      {{.name = "--baseline", .value = "NAME", .help = "another preset, timed in turn with the first"},
       {.name = "--tokens",
        .value = "N",
        .help = "tokens of a step, the same at every length",
        .standard = "16384"},
       {.name = "--seq",
        .value = "TOKENS,...",
        .help = "lengths of a row, ascending; each divides --tokens",
        .standard = "1024,2048,4096,8192,16384"}});
  length.insert(
      length.end(),
      {{.name = "--microbatch",
        .value = "WHAT",
        .help = "row: one row, so that memory grows with it; step: all rows, so that only attention and the "
                "scan tell lengths apart",
        .standard = "row",
        .choices = {"row", "step"}},
       {.name = "--warmup",
        .value = "N",
        .help = "steps before those that are timed, at each length",
        .standard = "1"},
       {.name = "--steps", .value = "N", .help = "timed steps at each length", .standard = "1"},
       {.name = "--rounds",
        .value = "N",
        .help = "rounds over all lengths; their median counts",
        .standard = "2"},
       {.name = "--plot", .value = "FILE.svg", .help = "draw speed and memory over length"},
       set_option("model.num_layers=4")});
  std::vector<Option> kernels = shape_options();
  kernels.push_back(
      {.name = "--filter", .value = "TEXT", .help = "only operations whose name has this in it"});
  return {
      {.path = "bench train",
       .summary = "Time whole training steps: tokens/s, share of the machine's peak, time by operation",
       .example = "transxssm bench train --preset tiny --batch 8 --seq 512 --dtype bf16",
       .options = std::move(train),
       .run =
           [](const Arguments& arguments) {
             return run_worker([&](Worker& worker) { return bench_train(arguments, worker); });
           },
       .parallel = true},
      {.path = "bench length",
       .summary =
           "Time steps of the same tokens in rows of several lengths: speed, attention's share, memory",
       .example = "transxssm bench length --preset 320m-8l --baseline llama-8l --dtype bf16 --warmup 0 "
                  "--plot length.svg",
       .options = std::move(length),
       .run =
           [](const Arguments& arguments) {
             return run_worker([&](Worker& worker) { return bench_length(arguments, worker); });
           }},
      {.path = "bench kernels",
       .summary = "Time each operation beside the least time its bytes and arithmetic allow",
       .example = "transxssm bench kernels --preset 320m-8l --batch 1 --seq 2048 --dtype bf16 --filter scan",
       .options = std::move(kernels),
       .run = [](const Arguments& arguments) {
         return run_worker([&](Worker& worker) { return bench_kernels(arguments, worker); });
       }}};
}

}  // namespace transxssm
