#include <limits>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

// A row of logits as vectors of 16 bytes, wherever it begins: vector v has the elements [first, first + N),
// of which those in [0, width) are the row's.
template <class T>
struct AlignedRow {
  static constexpr int N = kVector<T>;
  T* row;
  int64_t width;
  int before;  // elements of the first vector that are not the row's

  __device__ AlignedRow(T* begin, int64_t count)
      : row(begin),
        width(count),
        before(static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16 / sizeof(T))) {}
  __device__ int64_t num_vectors() const { return (width + before + N - 1) / N; }
  __device__ int64_t first(int64_t vector) const { return vector * N - before; }
  __device__ bool whole(int64_t first) const { return first >= 0 && first + N <= width; }
  // What is not the row's reads as `other`.
  __device__ void load_from(int64_t first, float other, float (&x)[N]) const {
    if (whole(first)) return load_vector<N>(row + first, x);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = first + i >= 0 && first + i < width ? to_float(row[first + i]) : other;
  }
  __device__ void store_to(int64_t first, const float (&x)[N]) const {
    if (whole(first)) return store_vector<N>(row + first, x);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (first + i >= 0 && first + i < width) row[first + i] = from_float<std::remove_const_t<T>>(x[i]);
  }
};

constexpr float kLowest = -std::numeric_limits<float>::infinity();
// What is subtracted before exponentials are taken: -inf - -inf would have no value.
__device__ inline float shift_of(float max) {
  return max == kLowest ? 0.0f : max;
}

constexpr int kStatisticsThreads = 512;
struct StatisticsShared {
  float max[kWarp], sum[kWarp];
};

template <class T>
struct Statistics {
  Rows<const T> logits;
  int64_t width, first_id;
  const int32_t* targets;
  float *max, *sum, *target_logit;
};

// A block has one row, read once: each thread rescales its sum where its maximum grows (Milakov & Gimelshein
// 2018). Floor, bytes a logit: read once: 2 in bf16.
template <class T>
__global__ void __launch_bounds__(kStatisticsThreads) cross_entropy_statistics(Statistics<T> args) {
  constexpr int N = kVector<T>;
  auto& shared = shared_memory<StatisticsShared>();
  const int64_t t = blockIdx.x;
  const AlignedRow<const T> row(args.logits[t], args.width);
  float max = kLowest, sum = 0;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < row.num_vectors(); v += kStatisticsThreads) {
    float x[N];
    row.load_from(row.first(v), kLowest, x);
    float larger = max;
#pragma unroll
    for (int i = 0; i < N; ++i) larger = fmaxf(larger, x[i]);
    const float shift = shift_of(larger);
    sum *= fast_exp(max - shift);
    max = larger;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += fast_exp(x[i] - shift);
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const float max_of_warp = warp_max(max);
  if (lane == 0) shared.max[warp] = max_of_warp;
  sync_block();
  const float max_of_row = warp_max(lane < kStatisticsThreads / kWarp ? shared.max[lane] : kLowest);
  sum = block_sum(sum * fast_exp(max - shift_of(max_of_row)), shared.sum);
  if (threadIdx.x != 0) return;
  const int64_t target = args.targets[t] - args.first_id;
  args.max[t] = max_of_row;
  args.sum[t] = sum;
  args.target_logit[t] = target >= 0 && target < args.width ? to_float(row.row[target]) : 0.0f;
}

constexpr int kThreads = 256;

template <class T>
struct Backward {
  Rows<T> logits;
  int64_t width, first_id;
  const int32_t* targets;
  const uint8_t* valid;
  const float *max, *sum;
  const double* loss_scale;
  unsigned tiles;  // blocks a row
};

// A thread has neighbouring logits and subtracts the target's part itself before it stores them: nobody reads
// what another has written. Floor, bytes a logit: read and written: 4 in bf16.
template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward(Backward<T> args) {
  constexpr int N = kVector<T>;
  const int64_t t = blockIdx.x / args.tiles;
  const AlignedRow<T> row(args.logits[t], args.width);
  const int64_t first = row.first(static_cast<int64_t>(blockIdx.x % args.tiles) * kThreads + threadIdx.x);
  if (first >= args.width) return;
  float x[N] = {};
  if (args.valid[t]) {
    const auto loss_scale = static_cast<float>(*args.loss_scale);
    const float max = args.max[t], scale = loss_scale / args.sum[t];
    const int64_t target = args.targets[t] - args.first_id - first;
    row.load_from(first, kLowest, x);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = fmaf(fast_exp(x[i] - max), scale, target == i ? -loss_scale : 0.0f);
  }
  row.store_to(first, x);
}

template <class Args>
void check_rows(const Args& args, const char* name_of_logits, const char* name_of_targets,
                const char* name_of_max, const char* name_of_sum) {
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.logits, name_of_logits, args.logits.dtype(), {tokens, width});
  expect(args.targets, name_of_targets, DType::i32, {tokens});
  expect(args.max, name_of_max, DType::f32, {tokens});
  expect(args.sum, name_of_sum, DType::f32, {tokens});
}

}  // namespace

// The number of tokens is taken from `max`: a slice of the vocabulary may have no columns, and then no
// memory.
void run(Stream& stream, const CrossEntropyStatistics& args) {
  check_rows(args, "CrossEntropyStatistics.logits", "CrossEntropyStatistics.targets",
             "CrossEntropyStatistics.max", "CrossEntropyStatistics.sum");
  const int64_t tokens = args.max.size(0);
  expect(args.target_logit, "CrossEntropyStatistics.target_logit", DType::f32, {tokens});
  if (tokens == 0) return;
  with_activation(args.logits, "CrossEntropyStatistics.logits", [&](auto type) {
    using T = decltype(type);
    const Statistics<T> statistics{.logits = rows_of<const T>(args.logits),
                                   .width = args.logits.size(1),
                                   .first_id = args.first_id,
                                   .targets = data_of<const int32_t>(args.targets),
                                   .max = data_of<float>(args.max),
                                   .sum = data_of<float>(args.sum),
                                   .target_logit = data_of<float>(args.target_logit)};
    TRANSXSSM_LAUNCH(cross_entropy_statistics<T>,
                     (LaunchShape{.grid = dim3(static_cast<unsigned>(tokens)),
                                  .block = dim3(kStatisticsThreads),
                                  .shared_bytes = sizeof(StatisticsShared)}),
                     queue_of(stream), statistics);
  });
}

void run(Stream& stream, const CrossEntropyBackward& args) {
  check_rows(args, "CrossEntropyBackward.logits", "CrossEntropyBackward.targets", "CrossEntropyBackward.max",
             "CrossEntropyBackward.sum");
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.valid, "CrossEntropyBackward.valid", DType::u8, {tokens});
  expect(args.loss_scale, "CrossEntropyBackward.loss_scale", DType::f64, {1});
  if (args.logits.num_elements() == 0) return;
  with_activation(args.logits, "CrossEntropyBackward.logits", [&](auto type) {
    using T = decltype(type);
    constexpr int64_t kVectors = kVector<T>, kColumns = kThreads * kVectors;
    const int64_t tiles = (width + kVectors - 1 + kColumns - 1) / kColumns;  // wherever a row begins
    const Backward<T> backward{.logits = rows_of<T>(args.logits),
                               .width = width,
                               .first_id = args.first_id,
                               .targets = data_of<const int32_t>(args.targets),
                               .valid = data_of<const uint8_t>(args.valid),
                               .max = data_of<const float>(args.max),
                               .sum = data_of<const float>(args.sum),
                               .loss_scale = data_of<const double>(args.loss_scale),
                               .tiles = static_cast<unsigned>(tiles)};
    TRANSXSSM_LAUNCH(
        cross_entropy_backward<T>,
        (LaunchShape{.grid = dim3(static_cast<unsigned>(tokens * tiles)), .block = dim3(kThreads)}),
        queue_of(stream), backward);
  });
}

}  // namespace transxssm::cuda
