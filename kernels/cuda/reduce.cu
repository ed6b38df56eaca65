#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

constexpr int kThreads = 256, kFinalThreads = 1024;
constexpr int64_t kElements = 16384;  // of a block: the same for every device

enum class Term { square, not_finite };

template <int kWarps>
struct ReduceShared {
  double sums[kWarps];
};
// The sum over a block's threads, in the first of them; the order is fixed.
template <int kWarps>
__device__ inline double sum_of_block(double value) {
  auto& shared = shared_memory<ReduceShared<kWarps>>();
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  if (threadIdx.x % kWarp == 0) shared.sums[threadIdx.x / kWarp] = value;
  sync_block();
  if (threadIdx.x == 0)
    for (int w = 1; w < kWarps; ++w) value += shared.sums[w];
  return value;
}

// N: elements loaded at a time. The order of the sum does not depend on it.
// Floor, bytes an element: 4 read.
template <Term kTerm, int N>
__global__ void __launch_bounds__(kThreads) reduce_blocks(const float* x, int64_t count, double* partials) {
  constexpr int kTogether = kVector<float>;
  const int64_t begin = blockIdx.x * kElements, end = min(count, begin + kElements);
  double sum = 0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x * kTogether; i < end; i += kThreads * kTogether) {
    float values[kTogether] = {};
    if (N == kTogether && i + kTogether <= end) {
      load_vector<kTogether>(x + i, values);
    } else {
      for (int j = 0; j < kTogether; ++j)
        if (i + j < end) values[j] = x[i + j];
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const auto value = static_cast<double>(values[j]);
      // x - x is zero, or NaN for NaN and infinities.
      sum += kTerm == Term::square ? value * value : (values[j] - values[j] == 0.0f ? 0.0 : 1.0);
    }
  }
  sum = sum_of_block<kThreads / kWarp>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kFinalThreads)
    reduce_partials(const double* partials, int64_t count, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kFinalThreads) sum += partials[i];
  sum = sum_of_block<kFinalThreads / kWarp>(sum);
  if (threadIdx.x == 0) *total = sum;
}

int64_t num_blocks(const Tensor& x) {
  return (x.num_elements() + kElements - 1) / kElements;
}

// The sum over all tensors, on the host: waits for the stream.
template <Term kTerm>
double reduce(Stream& stream, const char* name, std::span<const Tensor> tensors) {
  int64_t blocks = 0;
  for (const Tensor& x : tensors) {
    if (x.num_elements() == 0) continue;
    TRANSXSSM_CHECK(x.dtype() == DType::f32, "{} is {}, not f32", name, dtype_name(x.dtype()));
    TRANSXSSM_CHECK(x.is_contiguous(), "{} is not contiguous", name);
    blocks += num_blocks(x);
  }
  if (blocks == 0) return 0;
  Scratch scratch(stream, (blocks + 1) * static_cast<int64_t>(sizeof(double)));
  double *total = scratch.data<double>(), *partials = total + 1, *next = partials;
  for (const Tensor& x : tensors) {
    if (x.num_elements() == 0) continue;
    with_vector<kVector<float>>(in_vectors(kVector<float>, kVector<float>, {x}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      TRANSXSSM_LAUNCH(reduce_blocks<kTerm, N>,
                       (LaunchShape{.grid = dim3(static_cast<unsigned>(num_blocks(x))),
                                    .block = dim3(kThreads),
                                    .shared_bytes = sizeof(ReduceShared<kThreads / kWarp>)}),
                       queue_of(stream), data_of<const float>(x), x.num_elements(), next);
    });
    next += num_blocks(x);
  }
  TRANSXSSM_LAUNCH(reduce_partials,
                   (LaunchShape{.grid = dim3(1),
                                .block = dim3(kFinalThreads),
                                .shared_bytes = sizeof(ReduceShared<kFinalThreads / kWarp>)}),
                   queue_of(stream), partials, blocks, total);
  double result = 0;
  stream.queue()->copy(total, &result, sizeof(double));
  stream.synchronize();
  return result;
}

}  // namespace

double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) {
  return reduce<Term::square>(stream, "sum_of_squares.x", tensors);
}

int64_t count_not_finite(Stream& stream, const Tensor& x) {
  return static_cast<int64_t>(reduce<Term::not_finite>(stream, "count_not_finite.x", std::span(&x, 1)));
}

}  // namespace transxssm::cuda
