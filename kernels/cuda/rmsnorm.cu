#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

constexpr int kScratch = kWarp;  // floats of shared memory that block_sum uses, before the rows

template <class S, class B>
struct Forward {
  int64_t width;
  Rows<const S> x;
  Rows<const B> branch;  // or none
  const float* residual_weight;
  Rows<S> sum;
  const float* weight;
  Rows<B> y;
  float* rstd;
  float eps;
};

// A block has one row, and keeps its sum in shared memory, each thread what it will read again itself.
// Floor, bytes an element: x and branch read, sum and y written: 8 in bf16, 12 with an f32 stream; 4 (6)
// without branch.
template <class S, class B, int N>
__global__ void __launch_bounds__(1024) rmsnorm_forward(Forward<S, B> args) {
  float* scratch = &shared_memory<float>();
  float* row = scratch + kScratch;
  const int64_t t = blockIdx.x, first = static_cast<int64_t>(threadIdx.x) * N;
  const int64_t step = static_cast<int64_t>(blockDim.x) * N;
  float squares = 0;
  for (int64_t i = first; i < args.width; i += step) {
    float x[N];
    load<N>(args.x[t] + i, x);
    if (args.branch) {
      float branch[N];
      load<N>(args.branch[t] + i, branch);
      if (args.residual_weight) {
        float weight[N];
        load<N>(args.residual_weight + i, weight);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] *= weight[j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = to_float(from_float<S>(x[j] + branch[j]));  // as it is stored
      store<N>(args.sum[t] + i, x);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) squares = fmaf(x[j], x[j], squares);
    store<N>(row + i, x);
  }
  squares = block_sum(squares, scratch);
  const float rstd = 1.0f / sqrtf(squares / static_cast<float>(args.width) + args.eps);
  if (threadIdx.x == 0) args.rstd[t] = rstd;
  for (int64_t i = first; i < args.width; i += step) {
    float x[N], weight[N];
    load<N>(row + i, x);
    load<N>(args.weight + i, weight);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] *= rstd * weight[j];
    store<N>(args.y[t] + i, x);
  }
}

template <class S, class B>
struct Backward {
  int64_t tokens, width, rows_of_block;
  Rows<const B> dy;
  Rows<const S> d_sum, sum;
  const float *rstd, *weight;
  Rows<const S> x;  // or none: no residual
  const float* residual_weight;
  Rows<S> dx;
  Rows<B> d_branch;
  float* partials;  // [blocks, columns]: of d_weight, then, where columns is 2 D, of d_residual_weight
  int64_t columns;
};

// With n = sum * rstd and g = dy * weight:  total = d_sum + rstd (g - n mean(g n)),  d_weight = sum over T of
// dy n. A block has neighbouring rows, one after the other. In shared memory, each thread its own columns:
// the sums over rows, and n and dy of the row at hand.
// Floor, bytes an element: dy, d_sum, sum and x read, dx and d_branch written: 12 in bf16, 20 with an f32
// stream; without residual dy, d_sum, sum and dx: 8 (14).
template <class S, class B, int N>
__global__ void __launch_bounds__(1024) rmsnorm_backward(Backward<S, B> args) {
  float* scratch = &shared_memory<float>();
  float* d_weights = scratch + kScratch;
  float* d_residuals = d_weights + args.width;
  float* normals = d_weights + args.columns;
  float* dys = normals + args.width;
  const bool learned = args.columns > args.width;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * N, step = static_cast<int64_t>(blockDim.x) * N;
  for (int64_t i = first; i < args.width; i += step) {
    const float zeros[N] = {};
    store<N>(d_weights + i, zeros);
    if (learned) store<N>(d_residuals + i, zeros);
  }
  const int64_t begin = blockIdx.x * args.rows_of_block, end = min(args.tokens, begin + args.rows_of_block);
  for (int64_t t = begin; t < end; ++t) {
    const float rstd = args.rstd[t];
    float product = 0;
    for (int64_t i = first; i < args.width; i += step) {
      float dy[N], normal[N], weight[N], d_weight[N];
      load<N>(args.dy[t] + i, dy);
      load<N>(args.sum[t] + i, normal);
      load<N>(args.weight + i, weight);
      load<N>(d_weights + i, d_weight);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        normal[j] *= rstd;
        const float term = dy[j] * normal[j];
        d_weight[j] += term;
        product = fmaf(term, weight[j], product);
      }
      store<N>(d_weights + i, d_weight);
      store<N>(normals + i, normal);
      store<N>(dys + i, dy);
    }
    const float mean = block_sum(product, scratch) / static_cast<float>(args.width);
    sync_block();  // the next row's sum uses scratch again
    for (int64_t i = first; i < args.width; i += step) {
      float total[N], normal[N], weight[N];
      load<N>(dys + i, total);
      load<N>(normals + i, normal);
      load<N>(args.weight + i, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) total[j] = rstd * fmaf(-normal[j], mean, total[j] * weight[j]);
      if (args.d_sum) {
        float d_sum[N];
        load<N>(args.d_sum[t] + i, d_sum);
#pragma unroll
        for (int j = 0; j < N; ++j) total[j] += d_sum[j];
      }
      if (args.x) {
        if (learned) {
          float x[N], d_residual[N];
          load<N>(args.x[t] + i, x);
          load<N>(d_residuals + i, d_residual);
#pragma unroll
          for (int j = 0; j < N; ++j) d_residual[j] = fmaf(total[j], x[j], d_residual[j]);
          store<N>(d_residuals + i, d_residual);
        }
        store<N>(args.d_branch[t] + i, total);
        if (args.residual_weight) {
          load<N>(args.residual_weight + i, weight);
#pragma unroll
          for (int j = 0; j < N; ++j) total[j] *= weight[j];
        }
      }
      store<N>(args.dx[t] + i, total);
    }
  }
  float* partials = args.partials + blockIdx.x * args.columns;
  for (int64_t i = first; i < args.width; i += step) {
    float sums[N];
    load<N>(d_weights + i, sums);
    store<N>(partials + i, sums);
    if (!learned) continue;
    load<N>(d_residuals + i, sums);
    store<N>(partials + args.width + i, sums);
  }
}

// Rows a block of the backward has: blocks for every multiprocessor several times (132 on H100), then rows
// enough that the partial sums are few beside them.
int64_t rows_of_backward_block(int64_t tokens) {
  const auto rows_for = [=](int64_t blocks) { return (tokens + blocks - 1) / blocks; };
  return std::max({int64_t{2}, rows_for(528), std::min(int64_t{8}, rows_for(264))});
}

size_t shared_bytes(const char* name, int64_t width, int64_t rows) {
  constexpr int64_t kMost = 227 * 1024 / static_cast<int64_t>(sizeof(float));
  const int64_t count = kScratch + rows * width;
  TRANSXSSM_CHECK(count <= kMost, "{} is {} wide: rows of at most {} fit a multiprocessor's memory", name,
                  width, (kMost - kScratch) / rows);
  return static_cast<size_t>(count) * sizeof(float);
}

}  // namespace

void run(Stream& stream, const RmsNormForward& args) {
  const Shape shape{args.x.size(0), args.x.size(1)}, channels{shape[1]};
  const DType branch_dtype = args.y.dtype();
  expect(args.x, "RmsNormForward.x", args.x.dtype(), shape);
  expect_or_empty(args.branch, "RmsNormForward.branch", branch_dtype, shape);
  expect_or_empty(args.residual_weight, "RmsNormForward.residual_weight", DType::f32, channels);
  if (args.branch) expect(args.sum, "RmsNormForward.sum", args.x.dtype(), shape);
  expect(args.weight, "RmsNormForward.weight", DType::f32, channels);
  expect(args.y, "RmsNormForward.y", branch_dtype, shape);
  expect(args.rstd, "RmsNormForward.rstd", DType::f32, {shape[0]});
  if (shape.num_elements() == 0) return;
  with_stream_and_branch(args.x, "RmsNormForward.x", args.y, "RmsNormForward.y", [&](auto s, auto b) {
    using S = decltype(s);
    using B = decltype(b);
    const bool vectors = in_vectors(
        shape[1], kVector<S, B>, {args.x, args.branch, args.residual_weight, args.sum, args.weight, args.y});
    with_vector<kVector<S, B>>(vectors, [&](auto count) {
      constexpr int N = decltype(count)::value;
      const Forward<S, B> forward{.width = shape[1],
                                  .x = rows_of<const S>(args.x),
                                  .branch = rows_of<const B>(args.branch),
                                  .residual_weight = data_of<const float>(args.residual_weight),
                                  .sum = rows_of<S>(args.sum),
                                  .weight = data_of<const float>(args.weight),
                                  .y = rows_of<B>(args.y),
                                  .rstd = data_of<float>(args.rstd),
                                  .eps = static_cast<float>(args.eps)};
      TRANSXSSM_LAUNCH(rmsnorm_forward<S, B, N>,
                       (LaunchShape{.grid = dim3(static_cast<unsigned>(shape[0])),
                                    .block = dim3(threads_of_row(shape[1], N)),
                                    .shared_bytes = shared_bytes("RmsNormForward.x", shape[1], 1)}),
                       queue_of(stream), forward);
    });
  });
}

void run(Stream& stream, const RmsNormBackward& args) {
  const Shape shape{args.sum.size(0), args.sum.size(1)}, channels{shape[1]};
  const DType dtype = args.sum.dtype(), branch_dtype = args.dy.dtype();
  expect(args.dy, "RmsNormBackward.dy", branch_dtype, shape);
  expect_or_empty(args.d_sum, "RmsNormBackward.d_sum", dtype, shape);
  expect(args.sum, "RmsNormBackward.sum", dtype, shape);
  expect(args.rstd, "RmsNormBackward.rstd", DType::f32, {shape[0]});
  expect(args.weight, "RmsNormBackward.weight", DType::f32, channels);
  expect_or_empty(args.x, "RmsNormBackward.x", dtype, shape);
  expect_or_empty(args.residual_weight, "RmsNormBackward.residual_weight", DType::f32, channels);
  expect(args.dx, "RmsNormBackward.dx", dtype, shape);
  if (args.x) expect(args.d_branch, "RmsNormBackward.d_branch", branch_dtype, shape);
  expect(args.d_weight, "RmsNormBackward.d_weight", DType::f32, channels);
  expect_or_empty(args.d_residual_weight, "RmsNormBackward.d_residual_weight", DType::f32, channels);
  if (shape.num_elements() == 0) return;
  with_stream_and_branch(args.sum, "RmsNormBackward.sum", args.dy, "RmsNormBackward.dy", [&](auto s, auto b) {
    using S = decltype(s);
    using B = decltype(b);
    const bool learned = args.x && args.d_residual_weight;
    const int64_t columns = (learned ? 2 : 1) * shape[1], rows = rows_of_backward_block(shape[0]);
    const int64_t blocks = (shape[0] + rows - 1) / rows;
    Scratch scratch(stream, blocks * columns * static_cast<int64_t>(sizeof(float)));
    float* partials = scratch.data<float>();
    const bool vectors = in_vectors(
        shape[1], kVector<S, B>,
        {args.dy, args.d_sum, args.sum, args.weight, args.x, args.residual_weight, args.dx, args.d_branch});
    with_vector<kVector<S, B>>(vectors, [&](auto count) {
      constexpr int N = decltype(count)::value;
      const Backward<S, B> backward{.tokens = shape[0],
                                    .width = shape[1],
                                    .rows_of_block = rows,
                                    .dy = rows_of<const B>(args.dy),
                                    .d_sum = rows_of<const S>(args.d_sum),
                                    .sum = rows_of<const S>(args.sum),
                                    .rstd = data_of<const float>(args.rstd),
                                    .weight = data_of<const float>(args.weight),
                                    .x = rows_of<const S>(args.x),
                                    .residual_weight = data_of<const float>(args.residual_weight),
                                    .dx = rows_of<S>(args.dx),
                                    .d_branch = rows_of<B>(args.d_branch),
                                    .partials = partials,
                                    .columns = columns};
      TRANSXSSM_LAUNCH(
          rmsnorm_backward<S, B, N>,
          (LaunchShape{.grid = dim3(static_cast<unsigned>(blocks)),
                       .block = dim3(threads_of_row(shape[1], N)),
                       .shared_bytes = shared_bytes("RmsNormBackward.sum", shape[1], learned ? 4 : 3)}),
          queue_of(stream), backward);
    });
    queue_column_sums(stream, partials, blocks, columns,
                      TwoVectors{.first = data_of<float>(args.d_weight),
                                 .second = data_of<float>(args.d_residual_weight),
                                 .width = shape[1]});
  });
}

}  // namespace transxssm::cuda
