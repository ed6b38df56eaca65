// The small steps of the loss between its passes over the logits.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

constexpr int kCombineThreads = 128, kLossThreads = 1024;

struct Slices {
  const float* data;  // [R,3,T]
  int64_t slice_stride, row_stride, count;
  __device__ float at(int64_t slice, int row, int64_t t) const {
    return data[slice * slice_stride + row * row_stride + t];
  }
};

// Floor, bytes a token: 12 R read, 12 written.
__global__ void __launch_bounds__(kCombineThreads)
    cross_entropy_combine(Slices slices, int64_t tokens, Rows<float> combined) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  if (t >= tokens) return;
  float max = slices.at(0, 0, t), sum = 0, hit = 0;
  for (int64_t r = 1; r < slices.count; ++r) max = fmaxf(max, slices.at(r, 0, t));
  for (int64_t r = 0; r < slices.count; ++r) {
    sum += slices.at(r, 1, t) * expf(slices.at(r, 0, t) - max);
    hit += slices.at(r, 2, t);  // zero but on the rank that holds the target
  }
  combined[0][t] = max;
  combined[1][t] = sum;
  combined[2][t] = hit;
}

struct LossShared {
  double sums[kLossThreads / kWarp];
};

// One block, because a few thousand tokens are summed, in an order that depends on their number alone.
// Floor, bytes a token: 13 read.
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_loss(int64_t tokens, const uint8_t* valid, const float* max, const float* sum,
                       const float* target_logit, double* loss) {
  auto& shared = shared_memory<LossShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  double total = 0;
  for (int64_t t = threadIdx.x; t < tokens; t += kLossThreads)
    if (valid[t])
      total += log(static_cast<double>(sum[t])) + static_cast<double>(max[t]) -
               static_cast<double>(target_logit[t]);
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  if (lane == 0) shared.sums[warp] = total;
  sync_block();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kLossThreads / kWarp; ++w) total += shared.sums[w];
  *loss += total;
}

}  // namespace

void run(Stream& stream, const CrossEntropyCombine& args) {
  const int64_t tokens = args.combined.size(1), slices = args.slices.size(0);
  expect(args.combined, "CrossEntropyCombine.combined", DType::f32, {3, tokens});
  expect(args.slices, "CrossEntropyCombine.slices", DType::f32, {slices, 3, tokens});
  if (tokens == 0) return;
  const Slices all{data_of<const float>(args.slices), args.slices.stride(0), args.slices.stride(1), slices};
  const auto blocks = static_cast<unsigned>((tokens + kCombineThreads - 1) / kCombineThreads);
  TRANSXSSM_LAUNCH(cross_entropy_combine, (LaunchShape{.grid = dim3(blocks), .block = dim3(kCombineThreads)}),
                   queue_of(stream), all, tokens, rows_of<float>(args.combined));
}

void run(Stream& stream, const CrossEntropyLoss& args) {
  const Shape tokens = {args.sum.size(0)};
  expect(args.sum, "CrossEntropyLoss.sum", DType::f32, tokens);
  expect(args.max, "CrossEntropyLoss.max", DType::f32, tokens);
  expect(args.target_logit, "CrossEntropyLoss.target_logit", DType::f32, tokens);
  expect(args.valid, "CrossEntropyLoss.valid", DType::u8, tokens);
  expect(args.loss, "CrossEntropyLoss.loss", DType::f64, {1});
  if (tokens[0] == 0) return;
  TRANSXSSM_LAUNCH(
      cross_entropy_loss,
      (LaunchShape{.grid = dim3(1), .block = dim3(kLossThreads), .shared_bytes = sizeof(LossShared)}),
      queue_of(stream), tokens[0], data_of<const uint8_t>(args.valid), data_of<const float>(args.max),
      data_of<const float>(args.sum), data_of<const float>(args.target_logit), data_of<double>(args.loss));
}

}  // namespace transxssm::cuda
