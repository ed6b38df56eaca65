#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

// Floor, bytes an element: x and branch read, y written: 6 in bf16, 10 with an f32 stream.
template <class S, class B, int N>
__global__ void __launch_bounds__(kRowThreads)
    residual_forward(RowGrid grid, Rows<const S> xs, Rows<const B> branches, const float* weights,
                     Rows<S> ys) {
  const RowPlace at = row_place<N>(grid);
  if (!at.inside) return;
  float x[N], branch[N], weight[N];
  load<N>(xs[at.row] + at.column, x);
  load<N>(branches[at.row] + at.column, branch);
  if (weights) {
    load<N>(weights + at.column, weight);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= weight[i];
  }
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] += branch[i];
  store<N>(ys[at.row] + at.column, x);
}

template <class S, class B>
struct Backward {
  Rows<const S> dy, x;
  const float* weight;
  Rows<S> dx;
  Rows<B> d_branch;
  float* partials;  // [strips, D] or null
};

// Floor, bytes an element: dy and x read, dx (and d_branch) written: 6 in bf16, 12 (14) with an f32 stream.
template <class S, class B, int N>
__global__ void __launch_bounds__(kRowThreads) residual_backward(RowGrid grid, Backward<S, B> args) {
  const RowPlace at = row_place<N>(grid);
  const int lines = kRowThreads >> grid.lanes_log2;
  const int64_t end = min(grid.rows, (at.strip + 1) * grid.rows_of_block);
  float weight[N], sums[N] = {};
  if (args.weight && at.column < grid.width) load<N>(args.weight + at.column, weight);
  if (at.column < grid.width) {
    for (int64_t row = at.row; row < end; row += lines) {
      float dy[N];
      load<N>(args.dy[row] + at.column, dy);
      if (args.partials) {
        float x[N];
        load<N>(args.x[row] + at.column, x);
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = fmaf(dy[i], x[i], sums[i]);
      }
      if (args.d_branch) store<N>(args.d_branch[row] + at.column, dy);
      if (args.weight) {
#pragma unroll
        for (int i = 0; i < N; ++i) dy[i] *= weight[i];
      }
      store<N>(args.dx[row] + at.column, dy);
    }
  }
  if (args.partials) store_partial_sums<N>(grid, at, sums, args.partials);
}

}  // namespace

void run(Stream& stream, const ResidualForward& args) {
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "ResidualForward.x", args.x.dtype(), shape);
  expect(args.branch, "ResidualForward.branch", args.branch.dtype(), shape);
  expect_or_empty(args.weight, "ResidualForward.weight", DType::f32, {shape[1]});
  expect(args.y, "ResidualForward.y", args.x.dtype(), shape);
  if (shape.num_elements() == 0) return;
  with_stream_and_branch(
      args.x, "ResidualForward.x", args.branch, "ResidualForward.branch", [&](auto s, auto b) {
        using S = decltype(s);
        using B = decltype(b);
        with_vector<kVector<S, B>>(
            in_vectors(shape[1], kVector<S, B>, {args.x, args.branch, args.weight, args.y}), [&](auto count) {
              constexpr int N = decltype(count)::value;
              const RowGrid grid = make_row_grid(shape[0], shape[1], N);
              TRANSXSSM_LAUNCH(residual_forward<S, B, N>, launch_shape(grid), queue_of(stream), grid,
                               rows_of<const S>(args.x), rows_of<const B>(args.branch),
                               data_of<const float>(args.weight), rows_of<S>(args.y));
            });
      });
}

void run(Stream& stream, const ResidualBackward& args) {
  const Shape shape{args.dy.size(0), args.dy.size(1)}, channels{shape[1]};
  expect(args.dy, "ResidualBackward.dy", args.dy.dtype(), shape);
  expect_or_empty(args.weight, "ResidualBackward.weight", DType::f32, channels);
  expect(args.dx, "ResidualBackward.dx", args.dy.dtype(), shape);
  expect_or_empty(args.d_weight, "ResidualBackward.d_weight", DType::f32, channels);
  expect_or_empty(args.d_branch, "ResidualBackward.d_branch", args.d_branch.dtype(), shape);
  if (args.d_weight) expect(args.x, "ResidualBackward.x", args.dy.dtype(), shape);
  if (shape.num_elements() == 0) return;
  const Tensor& branch = args.d_branch ? args.d_branch : args.dy;
  with_stream_and_branch(
      args.dy, "ResidualBackward.dy", branch, "ResidualBackward.d_branch", [&](auto s, auto b) {
        using S = decltype(s);
        using B = decltype(b);
        const bool vectors =
            in_vectors(shape[1], kVector<S, B>, {args.dy, args.x, args.weight, args.dx, args.d_branch});
        with_vector<kVector<S, B>>(vectors, [&](auto count) {
          constexpr int N = decltype(count)::value;
          const RowGrid grid =
              args.d_weight ? make_summing_grid(shape[0], shape[1], N) : make_row_grid(shape[0], shape[1], N);
          const int64_t bytes = num_strips(grid) * shape[1] * static_cast<int64_t>(sizeof(float));
          Scratch scratch(stream, args.d_weight ? bytes : 0);
          float* partials = args.d_weight ? scratch.data<float>() : nullptr;
          LaunchShape launch = launch_shape(grid);
          launch.shared_bytes = args.d_weight ? sizeof(SummingShared<N>) : 0;
          const Backward<S, B> backward{.dy = rows_of<const S>(args.dy),
                                        .x = rows_of<const S>(args.x),
                                        .weight = data_of<const float>(args.weight),
                                        .dx = rows_of<S>(args.dx),
                                        .d_branch = rows_of<B>(args.d_branch),
                                        .partials = partials};
          TRANSXSSM_LAUNCH(residual_backward<S, B, N>, launch, queue_of(stream), grid, backward);
          if (partials)
            queue_column_sums(stream, partials, num_strips(grid), shape[1],
                              TwoVectors{.first = data_of<float>(args.d_weight), .width = shape[1]});
        });
      });
}

}  // namespace transxssm::cuda
