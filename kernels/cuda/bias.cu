#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

// Floor, bytes an element: y read and written: 4 in bf16, 8 in f32.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) bias_forward(RowGrid grid, Rows<T> ys, const float* biases) {
  const RowPlace at = row_place<N>(grid);
  if (!at.inside) return;
  float y[N], bias[N];
  load<N>(ys[at.row] + at.column, y);
  load<N>(biases + at.column, bias);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] += bias[i];
  store<N>(ys[at.row] + at.column, y);
}

// Floor, bytes an element: dy read: 2 in bf16, 4 in f32.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    bias_backward(RowGrid grid, Rows<const T> dys, float* partials) {
  const RowPlace at = row_place<N>(grid);
  const int lines = kRowThreads >> grid.lanes_log2;
  const int64_t end = min(grid.rows, (at.strip + 1) * grid.rows_of_block);
  float sums[N] = {};
  if (at.column < grid.width) {
    for (int64_t row = at.row; row < end; row += lines) {
      float dy[N];
      load<N>(dys[row] + at.column, dy);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += dy[i];
    }
  }
  store_partial_sums<N>(grid, at, sums, partials);
}

}  // namespace

void run(Stream& stream, const BiasForward& args) {
  const Shape shape{args.y.size(0), args.y.size(1)};
  expect(args.y, "BiasForward.y", args.y.dtype(), shape);
  expect(args.bias, "BiasForward.bias", DType::f32, {shape[1]});
  if (shape.num_elements() == 0) return;
  with_activation(args.y, "BiasForward.y", [&](auto t) {
    using T = decltype(t);
    with_vector<kVector<T>>(in_vectors(shape[1], kVector<T>, {args.y, args.bias}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      const RowGrid grid = make_row_grid(shape[0], shape[1], N);
      TRANSXSSM_LAUNCH(bias_forward<T, N>, launch_shape(grid), queue_of(stream), grid, rows_of<T>(args.y),
                       data_of<const float>(args.bias));
    });
  });
}

void run(Stream& stream, const BiasBackward& args) {
  const Shape shape{args.dy.size(0), args.dy.size(1)};
  expect(args.dy, "BiasBackward.dy", args.dy.dtype(), shape);
  expect(args.d_bias, "BiasBackward.d_bias", DType::f32, {shape[1]});
  if (shape.num_elements() == 0) return;
  with_activation(args.dy, "BiasBackward.dy", [&](auto t) {
    using T = decltype(t);
    with_vector<kVector<T>>(in_vectors(shape[1], kVector<T>, {args.dy}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      const RowGrid grid = make_summing_grid(shape[0], shape[1], N);
      Scratch scratch(stream, num_strips(grid) * shape[1] * static_cast<int64_t>(sizeof(float)));
      float* partials = scratch.data<float>();
      LaunchShape launch = launch_shape(grid);
      launch.shared_bytes = sizeof(SummingShared<N>);
      TRANSXSSM_LAUNCH(bias_backward<T, N>, launch, queue_of(stream), grid, rows_of<const T>(args.dy),
                       partials);
      queue_column_sums(stream, partials, num_strips(grid), shape[1],
                        TwoVectors{.first = data_of<float>(args.d_bias), .width = shape[1]});
    });
  });
}

}  // namespace transxssm::cuda
