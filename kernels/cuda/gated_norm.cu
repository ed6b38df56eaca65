#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

template <class T>
struct Sums {
  Rows<const T> x, z;
  const float* weight;  // with dy
  Rows<const T> dy;     // or none
  Rows<float> sums;     // [T,groups]
  int64_t count, groups, group_width;
};

// Per token and group the sum of v^2, or where dy is given of dy weight v; v = x silu(z). A warp has one sum.
// Floor, bytes an element: x and z (and dy) read: 4 (6) in bf16.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) gated_norm_sums(Sums<T> args) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) / kWarp;
  if (index >= args.count) return;  // a whole warp
  const int64_t t = index / args.groups, group = index % args.groups, begin = group * args.group_width;
  float sum = 0;
  for (int64_t i = static_cast<int64_t>(threadIdx.x % kWarp) * N; i < args.group_width; i += kWarp * N) {
    const int64_t column = begin + i;
    float x[N], z[N];
    load<N>(args.x[t] + column, x);
    load<N>(args.z[t] + column, z);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] *= z[j] * sigmoid(z[j]);
    if (args.dy) {
      float dy[N], weight[N];
      load<N>(args.dy[t] + column, dy);
      load<N>(args.weight + column, weight);
#pragma unroll
      for (int j = 0; j < N; ++j) sum = fmaf(dy[j] * weight[j], x[j], sum);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) sum = fmaf(x[j], x[j], sum);
    }
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) args.sums[t][group] = sum;
}

// What the second steps know of the groups.
struct Groups {
  Rows<const float> squares;  // [T,groups]
  int64_t width_here;
  float inverse_width;  // 1 / channels of a whole group
  float eps;
};
__device__ inline float inverse_rms(const Groups& groups, int64_t t, int64_t group) {
  return 1.0f / sqrtf(fmaf(groups.squares[t][group], groups.inverse_width, groups.eps));
}

// Floor, bytes an element: x and z read, y written: 6 in bf16.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    gated_norm_forward(RowGrid grid, Groups groups, Rows<const T> xs, Rows<const T> zs, const float* weights,
                       Rows<T> ys) {
  const RowPlace at = row_place<N>(grid);
  if (!at.inside) return;
  const float rstd = inverse_rms(groups, at.row, at.column / groups.width_here);
  float x[N], z[N], weight[N];
  load<N>(xs[at.row] + at.column, x);
  load<N>(zs[at.row] + at.column, z);
  load<N>(weights + at.column, weight);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= z[i] * sigmoid(z[i]) * rstd * weight[i];
  store<N>(ys[at.row] + at.column, x);
}

template <class T>
struct Backward {
  Groups groups;
  Rows<const float> dots;
  Rows<const T> x, z, dy;
  const float* weight;
  Rows<T> dx, dz;
  float* partials;  // [strips, W]
};

// With g = dy weight:  dv = rstd (g - v rstd^2 mean(g v)),  dx = dv silu(z),  dz = dv x silu'(z),  d_weight =
// sum over T of dy v rstd. Floor, bytes an element: x, z and dy read, dx and dz written: 10 in bf16.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) gated_norm_backward(RowGrid grid, Backward<T> args) {
  const RowPlace at = row_place<N>(grid);
  const int lines = kRowThreads >> grid.lanes_log2;
  const int64_t end = min(grid.rows, (at.strip + 1) * grid.rows_of_block);
  float weight[N], sums[N] = {};
  if (at.column < grid.width) {
    const int64_t group = at.column / args.groups.width_here;
    load<N>(args.weight + at.column, weight);
    for (int64_t row = at.row; row < end; row += lines) {
      const float rstd = inverse_rms(args.groups, row, group);
      const float slope = rstd * rstd * args.dots[row][group] * args.groups.inverse_width;
      float x[N], z[N], dy[N];
      load<N>(args.x[row] + at.column, x);
      load<N>(args.z[row] + at.column, z);
      load<N>(args.dy[row] + at.column, dy);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float gate = z[i], s = sigmoid(gate), silu = gate * s, v = x[i] * silu;
        sums[i] = fmaf(dy[i], v * rstd, sums[i]);
        const float dv = rstd * fmaf(-v, slope, dy[i] * weight[i]);
        z[i] = dv * x[i] * silu_slope(gate, s);
        x[i] = dv * silu;
      }
      store<N>(args.dx[row] + at.column, x);
      store<N>(args.dz[row] + at.column, z);
    }
  }
  store_partial_sums<N>(grid, at, sums, args.partials);
}

// An internal error unless `sums` is [T,groups] f32 and the groups divide the channels of `shape` [T,W];
// where `group_width` is given, a whole group has at least the channels of its part here. Returns those.
int64_t check_groups(const Tensor& sums, const char* name, const Shape& shape, int64_t group_width = -1) {
  TRANSXSSM_CHECK(sums.rank() == 2, "{} is {}", name, sums.shape().to_string());
  const int64_t groups = sums.size(1);
  expect(sums, name, DType::f32, {shape[0], groups});
  TRANSXSSM_CHECK(groups > 0 && shape[1] % groups == 0, "{}: {} groups do not divide {} channels", name,
                  groups, shape[1]);
  TRANSXSSM_CHECK(group_width == -1 || group_width >= shape[1] / groups,
                  "{}: a whole group of {} channels has {} of them here", name, group_width,
                  shape[1] / groups);
  return shape[1] / groups;
}

Groups make_groups(const Tensor& squares, int64_t width_here, int64_t group_width, double eps) {
  return {.squares = rows_of<const float>(squares),
          .width_here = width_here,
          .inverse_width = static_cast<float>(1 / static_cast<double>(group_width)),
          .eps = static_cast<float>(eps)};
}

void run_sums(Stream& stream, const char* name, const Tensor& x, const Tensor& z, const Tensor& weight,
              const Tensor& dy, const Tensor& sums, int64_t group_width) {
  if (x.num_elements() == 0) return;
  with_activation(x, name, [&](auto type) {
    using T = decltype(type);
    with_vector<kVector<T>>(in_vectors(group_width, kVector<T>, {x, z, weight, dy}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      const int64_t groups = sums.size(1), warps = kRowThreads / kWarp;
      const Sums<T> args{.x = rows_of<const T>(x),
                         .z = rows_of<const T>(z),
                         .weight = data_of<const float>(weight),
                         .dy = rows_of<const T>(dy),
                         .sums = rows_of<float>(sums),
                         .count = x.size(0) * groups,
                         .groups = groups,
                         .group_width = group_width};
      TRANSXSSM_LAUNCH(gated_norm_sums<T, N>,
                       (LaunchShape{.grid = dim3(static_cast<unsigned>((args.count + warps - 1) / warps)),
                                    .block = dim3(kRowThreads)}),
                       queue_of(stream), args);
    });
  });
}

}  // namespace

void run(Stream& stream, const GatedNormSquares& args) {
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormSquares.x", args.x.dtype(), shape);
  expect(args.z, "GatedNormSquares.z", args.x.dtype(), shape);
  const int64_t group_width = check_groups(args.squares, "GatedNormSquares.squares", shape);
  run_sums(stream, "GatedNormSquares.x", args.x, args.z, {}, {}, args.squares, group_width);
}

void run(Stream& stream, const GatedNormForward& args) {
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormForward.x", dtype, shape);
  expect(args.z, "GatedNormForward.z", dtype, shape);
  expect(args.weight, "GatedNormForward.weight", DType::f32, {shape[1]});
  const int64_t here = check_groups(args.squares, "GatedNormForward.squares", shape, args.group_width);
  expect(args.y, "GatedNormForward.y", dtype, shape);
  if (shape.num_elements() == 0) return;
  const Groups groups = make_groups(args.squares, here, args.group_width, args.eps);
  with_activation(args.x, "GatedNormForward.x", [&](auto type) {
    using T = decltype(type);
    with_vector<kVector<T>>(
        in_vectors(here, kVector<T>, {args.x, args.z, args.weight, args.y}), [&](auto count) {
          constexpr int N = decltype(count)::value;
          const RowGrid grid = make_row_grid(shape[0], shape[1], N);
          TRANSXSSM_LAUNCH(gated_norm_forward<T, N>, launch_shape(grid), queue_of(stream), grid, groups,
                           rows_of<const T>(args.x), rows_of<const T>(args.z),
                           data_of<const float>(args.weight), rows_of<T>(args.y));
        });
  });
}

void run(Stream& stream, const GatedNormDots& args) {
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormDots.x", dtype, shape);
  expect(args.z, "GatedNormDots.z", dtype, shape);
  expect(args.weight, "GatedNormDots.weight", DType::f32, {shape[1]});
  expect(args.dy, "GatedNormDots.dy", dtype, shape);
  const int64_t group_width = check_groups(args.dots, "GatedNormDots.dots", shape);
  run_sums(stream, "GatedNormDots.x", args.x, args.z, args.weight, args.dy, args.dots, group_width);
}

void run(Stream& stream, const GatedNormBackward& args) {
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.size(0), args.x.size(1)};
  expect(args.x, "GatedNormBackward.x", dtype, shape);
  expect(args.z, "GatedNormBackward.z", dtype, shape);
  expect(args.weight, "GatedNormBackward.weight", DType::f32, {shape[1]});
  const int64_t here = check_groups(args.squares, "GatedNormBackward.squares", shape, args.group_width);
  expect(args.dots, "GatedNormBackward.dots", DType::f32, args.squares.shape());
  expect(args.dy, "GatedNormBackward.dy", dtype, shape);
  expect(args.dx, "GatedNormBackward.dx", dtype, shape);
  expect(args.dz, "GatedNormBackward.dz", dtype, shape);
  expect(args.d_weight, "GatedNormBackward.d_weight", DType::f32, {shape[1]});
  if (shape.num_elements() == 0) return;
  with_activation(args.x, "GatedNormBackward.x", [&](auto type) {
    using T = decltype(type);
    const bool vectors =
        in_vectors(here, kVector<T>, {args.x, args.z, args.weight, args.dy, args.dx, args.dz});
    with_vector<kVector<T>>(vectors, [&](auto count) {
      constexpr int N = decltype(count)::value;
      const RowGrid grid = make_summing_grid(shape[0], shape[1], N);
      Scratch scratch(stream, num_strips(grid) * shape[1] * static_cast<int64_t>(sizeof(float)));
      const Backward<T> backward{.groups = make_groups(args.squares, here, args.group_width, args.eps),
                                 .dots = rows_of<const float>(args.dots),
                                 .x = rows_of<const T>(args.x),
                                 .z = rows_of<const T>(args.z),
                                 .dy = rows_of<const T>(args.dy),
                                 .weight = data_of<const float>(args.weight),
                                 .dx = rows_of<T>(args.dx),
                                 .dz = rows_of<T>(args.dz),
                                 .partials = scratch.data<float>()};
      LaunchShape launch = launch_shape(grid);
      launch.shared_bytes = sizeof(SummingShared<N>);
      TRANSXSSM_LAUNCH(gated_norm_backward<T, N>, launch, queue_of(stream), grid, backward);
      queue_column_sums(stream, backward.partials, num_strips(grid), shape[1],
                        TwoVectors{.first = data_of<float>(args.d_weight), .width = shape[1]});
    });
  });
}

}  // namespace transxssm::cuda
