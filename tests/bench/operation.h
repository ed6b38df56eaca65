// What the benchmarks of operations share. Each operation runs at the shapes of the presets tiny and 320m.
// The argument `preset` is 0 or 1, `threads` the number of threads, `bf16` 1 where activations are bf16;
// bytes_per_second counts what an operation must read and write once, flop_per_second its multiplications and
// additions.
#pragma once

#include <benchmark/benchmark.h>

#include "tests/support/tensors.h"

namespace transxssm {

struct Preset {
  int64_t batch, row, width, heads, head_dim, state, chunk, ffn, vocabulary, loss_tokens;
  int64_t tokens() const { return batch * row; }
};
inline constexpr Preset kPresets[] = {{8, 512, 256, 4, 64, 64, 64, 704, 8192, 2048},
                                      {1, 2048, 768, 12, 64, 128, 256, 3584, 50304, 512}};

inline const Preset& preset(const benchmark::State& state) {
  return kPresets[state.range(0)];
}
inline int threads(const benchmark::State& state) {
  return static_cast<int>(state.range(1));
}

// Of activations.
inline DType dtype(const benchmark::State& state) {
  return state.range(2) != 0 ? DType::bf16 : DType::f32;
}

// Times fn() and reports its rates.
template <class Fn>
void measure(benchmark::State& state, Fn&& fn, double bytes, double flops = 0) {
  fn();  // scratch memory and page faults
  for (auto _ : state) fn();
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["bytes_per_second"] = benchmark::Counter(bytes, rate, benchmark::Counter::kIs1000);
  if (flops > 0)
    state.counters["flop_per_second"] = benchmark::Counter(flops, rate, benchmark::Counter::kIs1000);
}

// Constant: random numbers are slow to draw at these sizes, and no operation is faster on equal ones.
inline OwnedTensor tensor(const Shape& shape, double value = 0.01, DType dtype = DType::f32) {
  OwnedTensor result(dtype, shape);
  const int64_t count = result.view().num_elements();
  const auto number = static_cast<float>(value);
  if (dtype == DType::bf16)
    std::fill_n(result.view().data<BFloat16>(), count, to_bfloat16(number));
  else
    std::fill_n(result.view().data<float>(), count, number);
  return result;
}
inline OwnedTensor activation(DType dtype, const Shape& shape) {
  return tensor(shape, 0.01, dtype);
}

inline double bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) sum += static_cast<double>(t.num_bytes());
  return sum;
}

#define BENCHMARK_OPERATION(name) \
  BENCHMARK(name)->ArgNames({"preset", "threads"})->ArgsProduct({{0, 1}, {1, 2}})->UseRealTime()
#define BENCHMARK_ACTIVATIONS(name)             \
  BENCHMARK(name)                               \
      ->ArgNames({"preset", "threads", "bf16"}) \
      ->ArgsProduct({{0, 1}, {1, 2}, {0, 1}})   \
      ->UseRealTime()

}  // namespace transxssm
