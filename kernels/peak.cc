#include "kernels/peak.h"

#include <algorithm>
#include <chrono>

#include "kernels/copy.h"
#include "kernels/cpu/peak.h"
#include "kernels/gemm.h"

namespace transxssm {
namespace {

// The best of a few goes, in seconds.
template <class Fn>
double best_seconds(Stream& stream, int goes, Fn&& go) {
  double best = 1e30;
  go();  // page faults, plans
  stream.synchronize();
  for (int i = 0; i < goes; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    go();
    stream.synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

// Sizes grow as long as one go stays below this: a slow device is measured too.
constexpr double kLongGo = 0.05;

double device_flops(Stream& stream, DType dtype) {
  double best = 0;
  for (const int64_t n : {512, 1024, 2048, 4096, 8192}) {
    Arena arena(3 * carved_bytes(dtype, {n, n}), stream.device());
    Carver carver = arena.carver();
    const Tensor a = carver.take(dtype, {n, n}), b = carver.take(dtype, {n, n}),
                 c = carver.take(dtype, {n, n});
    const double seconds = best_seconds(stream, 10, [&] { run(stream, Gemm{a, b, c, false, true}); });
    best = std::max(best,
                    2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / seconds);
    if (seconds > kLongGo) break;
  }
  return best;
}

// Of the largest size; what fits in a cache is faster.
double copy_bandwidth(Stream& stream) {
  double bandwidth = 0;
  for (const int64_t elements : {int64_t{1} << 18, int64_t{1} << 22, int64_t{1} << 26}) {  // 256 MiB each way
    Arena arena(2 * carved_bytes(DType::f32, {elements}), stream.device());
    Carver carver = arena.carver();
    const Tensor from = carver.take(DType::f32, {elements / 4096, 4096}),
                 to = carver.take(DType::f32, from.shape());
    const double seconds = best_seconds(stream, 5, [&] { run(stream, Copy{from, to}); });
    bandwidth = 2.0 * static_cast<double>(from.num_bytes()) / seconds;
    if (seconds > kLongGo) break;
  }
  return bandwidth;
}

}  // namespace

MachinePeaks measure_peaks(Stream& stream) {
  MachinePeaks peaks;
  peaks.copy_bandwidth = copy_bandwidth(stream);
  const bool cpu = stream.device().is_cpu();
  peaks.flops_f32 = cpu ? cpu::measure_flops_f32(stream) : device_flops(stream, DType::f32);
  peaks.flops_bf16 = cpu ? cpu::measure_flops_bf16(stream) : device_flops(stream, DType::bf16);
  return peaks;
}

}  // namespace transxssm
