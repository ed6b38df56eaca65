#include "launch/commands/bench.h"

#include "launch/benchmark.h"
#include "launch/device.h"

namespace transxssm {
namespace {

std::vector<Option> shape_options() {
  return {
      {.name = "--preset",
       .value = "NAME",
       .help = "a preset of the model (tiny, transxssm-320m, ...), or 320m-8l, llama-8l: cut to 8 layers",
       .standard = "tiny"},
      {.name = "--batch", .value = "ROWS", .help = "rows of a step, on all ranks together", .standard = "8"},
      {.name = "--seq", .value = "TOKENS", .help = "tokens of a row", .standard = "512"},
      {.name = "--dtype",
       .value = "TYPE",
       .help = "type of products and activations",
       .standard = "f32",
       .choices = {"f32", "bf16"}},
      {.name = "--threads", .value = "N", .help = "of a rank; 0: its share of the cores", .standard = "0"},
      {.name = "--device", .value = "auto|cpu|cuda|cuda:N", .help = "where to run", .standard = "auto"},
      {.name = "--json", .value = "FILE", .help = "write the result there too"}};
}

BenchmarkShape shape_of(const Arguments& arguments) {
  return {.preset = arguments.text("--preset"),
          .rows = arguments.integer("--batch", 1, 1 << 24),
          .tokens = arguments.integer("--seq", 2, 1 << 24),
          .dtype = arguments.text("--dtype")};
}

Stream make_stream(const Arguments& arguments, Worker& worker) {
  return Stream(choose_device(arguments.text("--device"), worker.local_rank()),
                worker.take_threads(static_cast<int>(arguments.integer("--threads", 0, 1024)), true));
}

int bench_train(const Arguments& arguments, Worker& worker) {
  const BenchmarkShape shape = shape_of(arguments);
  const TrainConfig config = benchmark_config(shape, arguments.list("--set"), worker.size());
  Stream stream = make_stream(arguments, worker);
  use_device_of(stream, worker);
  benchmark_training(config, shape,
                     {.steps = static_cast<int>(arguments.integer("--steps", 1, 100000)),
                      .rounds = static_cast<int>(arguments.integer("--rounds", 1, 1000)),
                      .against = arguments.text("--against"),
                      .json = arguments.text("--json"),
                      .trace = arguments.text("--trace")},
                     worker, stream);
  return 0;
}

int bench_kernels(const Arguments& arguments, Worker& worker) {
  Stream stream = make_stream(arguments, worker);
  benchmark_operations(shape_of(arguments), arguments.text("--filter"), arguments.text("--json"), stream);
  return 0;
}

}  // namespace

std::vector<Command> bench_commands() {
  std::vector<Option> train = shape_options();
  train.insert(train.end(),
               {{.name = "--steps", .value = "N", .help = "timed steps, after two others", .standard = "6"},
                {.name = "--against",
                 .value = "COMMAND",
                 .help = "a peer that prints a JSON line with tokens_per_s; runs in turn with us"},
                {.name = "--rounds", .value = "N", .help = "pairs of ours and the peer's", .standard = "3"},
                {.name = "--trace", .value = "FILE", .help = "write a Chrome/Perfetto trace of one step"},
                {.name = "--set",
                 .value = "PATH=VALUE",
                 .help = "override one field of the configuration, such as parallel.tp=2",
                 .repeatable = true}});
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
      {.path = "bench kernels",
       .summary = "Time each operation beside the least time its bytes and arithmetic allow",
       .example = "transxssm bench kernels --preset 320m-8l --batch 1 --seq 2048 --dtype bf16 --filter scan",
       .options = std::move(kernels),
       .run = [](const Arguments& arguments) {
         return run_worker([&](Worker& worker) { return bench_kernels(arguments, worker); });
       }}};
}

}  // namespace transxssm
