#include "launch/benchmark_steps.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "launch/config.h"
#include "runtime/arena.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

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

StepAllocations allocations_until_now() {
  const ArenaUse arenas = arena_use();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {.arenas = arenas.arenas,
          .arena_bytes = arenas.bytes,
          .fresh_bytes = usage.ru_minflt * sysconf(_SC_PAGESIZE)};
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

AllocationCounter::AllocationCounter() : begin_(allocations_until_now()) {}

StepAllocations AllocationCounter::count() const {
  const StepAllocations now = allocations_until_now();
  return {.arenas = now.arenas - begin_.arenas,
          .arena_bytes = now.arena_bytes - begin_.arena_bytes,
          .fresh_bytes = now.fresh_bytes - begin_.fresh_bytes};
}

TimedTraining::TimedTraining(const TrainConfig& config, Worker& worker, Stream& stream)
    : worker_(worker),
      stream_(stream),
      trainer_(config, worker.world(), stream),
      tokens_(tokens_per_step(config)) {
  fill_random(trainer_.batch(), config.model().vocab_size(), trainer_.first_row());
}

double TimedTraining::step() {
  const auto begin = std::chrono::steady_clock::now();
  trainer_.step();
  stream_.synchronize();
  worker_.world().barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

TimedTraining::TracedStep TimedTraining::trace_step() {
  Trace trace;
  TracedStep traced{.seconds = step()};
  traced.events = trace.take();
  return traced;
}

}  // namespace transxssm
