// Sums of the backward scan over the slices of a group, the tiles of a head, and the blocks of a head: each
// in a fixed order.
#include "kernels/cuda/ssd_launch.h"

namespace transxssm::cuda::ssd {

namespace {

constexpr int kSumThreads = 256;
constexpr int kColumns = 8;  // a thread's, of a group's sum

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kSumThreads - 1) / kSumThreads);
}

}  // namespace

// slices [B T, groups, count, N] to rows of [B,T,groups,N]. Reads 4 bytes an element, writes 2 for `count`.
__global__ void __launch_bounds__(kSumThreads)
    ssd_sum_group_kernel(const float* slices, Heads<bf16> to, int64_t rows, int tokens, int groups, int count,
                         int state_dim) {
  const int units = state_dim / kColumns;
  const int64_t index = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (index >= rows * tokens * groups * units) return;
  const int unit = static_cast<int>(index % units);
  const int64_t place = index / units, token = place / groups;
  const float* from = slices + place * count * state_dim + unit * kColumns;
  float sum[kColumns] = {};
  for (int i = 0; i < count; ++i) {
    float part[kColumns];
    load_vector(from + int64_t{i} * state_dim, part);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sum[j] += part[j];
  }
  store_vector(to.at(token / tokens, token % tokens, place % groups) + unit * kColumns, sum);
}

// tiles [B T, heads, count] to [B,T,heads].
__global__ void __launch_bounds__(kSumThreads)
    ssd_sum_du_kernel(const float* tiles, Heads<float> to, int64_t rows, int tokens, int heads, int count) {
  const int64_t index = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (index >= rows * tokens * heads) return;
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += tiles[index * count + i];
  const int64_t token = index / heads;
  *to.at(token / tokens, token % tokens, index % heads) = sum;
}

// parts [blocks, heads, tiles, 3] of dt_bias, a_log, d_skip, added to [heads] each. A warp a head, in double.
__global__ void __launch_bounds__(kWarp)
    ssd_sum_parameters_kernel(const float* parts, int64_t blocks, int tiles, float* dt_bias, float* a_log,
                              float* d_skip) {
  const int head = static_cast<int>(blockIdx.x), heads = static_cast<int>(gridDim.x);
  double sums[3] = {};
  for (int64_t i = threadIdx.x; i < blocks * tiles; i += kWarp) {
    const float* part = parts + 3 * ((i / tiles * heads + head) * tiles + i % tiles);
    for (int j = 0; j < 3; ++j) sums[j] += static_cast<double>(part[j]);
  }
  for (int j = 0; j < 3; ++j) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sums[j] += shuffle_xor(sums[j], mask);
  }
  if (threadIdx.x != 0) return;
  dt_bias[head] += static_cast<float>(sums[0]);
  a_log[head] += static_cast<float>(sums[1]);
  if (d_skip != nullptr) d_skip[head] += static_cast<float>(sums[2]);
}

void sum_group(Stream& stream, const ScanPlan& plan, const float* slices, const Heads<bf16>& to) {
  const int groups = plan.args.heads / plan.args.heads_per_group;
  const int64_t threads = plan.rows * plan.args.tokens * groups * (plan.state_dim / kColumns);
  const LaunchShape shape{.grid = dim3(blocks_for(threads)), .block = dim3(kSumThreads)};
  TRANSXSSM_LAUNCH(ssd_sum_group_kernel, shape, queue_of(stream), slices, to, plan.rows, plan.args.tokens,
                   groups, plan.args.heads_per_group * plan.args.tiles, static_cast<int>(plan.state_dim));
}

void sum_du(Stream& stream, const ScanPlan& plan, const float* tiles, const Heads<float>& to) {
  const int64_t threads = plan.rows * plan.args.tokens * plan.args.heads;
  const LaunchShape shape{.grid = dim3(blocks_for(threads)), .block = dim3(kSumThreads)};
  TRANSXSSM_LAUNCH(ssd_sum_du_kernel, shape, queue_of(stream), tiles, to, plan.rows, plan.args.tokens,
                   plan.args.heads, plan.args.tiles);
}

void sum_parameters(Stream& stream, const ScanPlan& plan, const float* parts, float* dt_bias, float* a_log,
                    float* d_skip) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(plan.args.heads)), .block = dim3(kWarp)};
  TRANSXSSM_LAUNCH(ssd_sum_parameters_kernel, shape, queue_of(stream), parts, plan.rows * plan.segments,
                   plan.args.tiles, dt_bias, a_log, d_skip);
}

}  // namespace transxssm::cuda::ssd
