// Sums over tokens, such as gradients of per-channel weights: each block of a kernel writes its own row of
// partial sums, and the rows are added in an order that depends on the shape alone.
#pragma once

#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

// Where the sum of a column is added: columns [0, width) to `first`, the next ones to `second`.
struct TwoVectors {
  float *first = nullptr, *second = nullptr;
  int64_t width = 0;
  __device__ float* operator()(int64_t column) const {
    return column < width ? first + column : second + (column - width);
  }
};

inline constexpr int kSumLines = 32;
struct ColumnSumShared {
  double sums[kSumLines][kWarp];
};

// *target(column) += sum over rows of partials[row][column], in f64. A block has 32 columns; line l of its
// lines of threads has the rows l, l + 32, ... Floor: 4 bytes an element of `partials`.
template <class Target>
__global__ void __launch_bounds__(kSumLines* kWarp)
    add_column_sums(const float* partials, int64_t rows, int64_t columns, Target target) {
  auto& shared = shared_memory<ColumnSumShared>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, line = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  double sum = 0;
  if (column < columns)
    for (int64_t row = line; row < rows; row += kSumLines) sum += partials[row * columns + column];
  shared.sums[line][lane] = sum;
  sync_block();
  if (line != 0 || column >= columns) return;
  float* total = target(column);
  for (int i = 1; i < kSumLines; ++i) sum += shared.sums[i][lane];
  *total = static_cast<float>(static_cast<double>(*total) + sum);
}

template <class Target>
void queue_column_sums(const Stream& stream, const float* partials, int64_t rows, int64_t columns,
                       const Target& target) {
  if (columns == 0) return;
  TRANSXSSM_LAUNCH(add_column_sums<Target>,
                   (LaunchShape{.grid = dim3(static_cast<unsigned>((columns + kWarp - 1) / kWarp)),
                                .block = dim3(kSumLines * kWarp),
                                .shared_bytes = sizeof(ColumnSumShared)}),
                   queue_of(stream), partials, rows, columns, target);
}

// A grid with blocks for every multiprocessor several times (132 on H100), then rows enough a block that
// partial sums are few beside what is summed.
inline RowGrid make_summing_grid(int64_t rows, int64_t width, int vector) {
  constexpr int64_t kManyRows = 32, kEnoughBlocks = 528, kMostBlocks = 4096;
  RowGrid grid = make_row_grid(rows, width, vector);
  const auto blocks = [&] { return num_strips(grid) * grid.tiles; };
  while (num_strips(grid) > 1 && blocks() > (grid.rows_of_block < kManyRows ? kEnoughBlocks : kMostBlocks))
    grid.rows_of_block *= 2;
  return grid;
}

// The sums of a block's threads, each `mine` of its own columns, to the block's row of `partials` [strips,
// width].
template <int N>
struct SummingShared {
  alignas(16) float sums[kRowThreads][N];
};
template <int N>
__device__ inline void store_partial_sums(const RowGrid& grid, const RowPlace& at, const float (&mine)[N],
                                          float* partials) {
  auto& shared = shared_memory<SummingShared<N>>();
  store<N>(shared.sums[threadIdx.x], mine);
  sync_block();
  const int lanes = 1 << grid.lanes_log2;
  const int64_t first = at.column - at.lane * N;  // of the block
  for (int i = static_cast<int>(threadIdx.x); i < lanes * N && first + i < grid.width; i += kRowThreads) {
    float sum = 0;
    for (int thread = i / N; thread < kRowThreads; thread += lanes) sum += shared.sums[thread][i % N];
    partials[at.strip * grid.width + first + i] = sum;
  }
}

}  // namespace transxssm::cuda
