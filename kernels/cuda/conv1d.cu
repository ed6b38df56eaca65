#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/conv1d_window.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

using namespace conv;

namespace {

// Floor, bytes an element: x read, y written: 4 in bf16.
template <class T, int N, int K>
__global__ void __launch_bounds__(kThreads, K == kUsualTaps ? 8 : 5)
    conv1d_forward(Input<T> in, Sequences<T> ys) {
  const Place at = place_in<N>(in);
  if (at.channel >= in.channels) return;
  const Weights<N, K> weights(in, at.channel);
  Window<N, K> window(in, at.row, at.begin, at.channel);
  const T* xs = in.x.at(at.row, at.begin) + at.channel;
  T* y_next = ys.at(at.row, at.begin) + at.channel;
  for (int t = at.begin; t < at.end; t += kAtOnce) {
    float x[kAtOnce][N];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (t + j < at.end) load<N>(xs + j * in.x.token_stride, x[j]);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (t + j >= at.end) break;
      window.push(x[j], in.starts(at.row, t + j));
      float y[N];
      window.sum(weights, y);
#pragma unroll
      for (int i = 0; i < N; ++i) y[i] *= sigmoid(y[i]);
      store<N>(y_next + j * ys.token_stride, y);
    }
    xs += kAtOnce * in.x.token_stride;
    y_next += kAtOnce * ys.token_stride;
  }
}

// The row after this one is given the row's last K-1 inputs, zero where they are of another document than the
// last. A thread has a channel, and reads all before it writes: `to` may be the initial window.
template <class T>
__global__ void __launch_bounds__(kThreads) conv1d_window(Input<T> in, Sequences<T> to) {
  const int64_t row = blockIdx.y, channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= in.channels) return;
  const int count = in.taps - 1;
  float values[kMaxTaps];
  bool seen = true;
#pragma unroll
  for (int back = 1; back < kMaxTaps; ++back) {
    const int token = in.tokens - back;
    values[back] = 0;
    if (back > count || (token < 0 && !in.window)) seen = false;
    if (!seen) continue;
    values[back] = to_float((token >= 0 ? in.x.at(row, token) : in.window.at(row, token + count))[channel]);
    seen = token < 0 || !in.starts(row, token);
  }
#pragma unroll
  for (int back = 1; back < kMaxTaps; ++back)
    if (back <= count) to.at(row, count - back)[channel] = from_float<T>(values[back]);
}

template <class T>
struct Backward {
  Sequences<const T> dy;
  Sequences<T> dx;
  T* ends;          // [stretches of all rows, K-1, C]: dy of the tokens after each stretch
  float* partials;  // [stretches of all rows, K+1, C]: sums over tokens of g x for each tap, and of g
};

// A stretch reads K-1 output gradients of the next one, which that one may have replaced: they are kept
// aside.
template <class T>
__global__ void __launch_bounds__(kThreads) conv1d_keep_ends(Input<T> in, Backward<T> args) {
  const Place at = place_in<1>(in);
  const int token = at.end + static_cast<int>(blockIdx.z);
  if (at.channel >= in.channels || token >= in.tokens) return;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (in.taps - 1) + blockIdx.z;
  args.ends[index * in.channels + at.channel] = args.dy.at(at.row, token)[at.channel];
}

// With g = dy silu'(sum), a token adds weight[k] g to dx of each token it sees. A thread keeps the dx of the
// last K tokens and stores the oldest when it is complete; for those at the end of its stretch it goes on K-1
// tokens beyond. Floor, bytes an element: x and dy read, dx written: 6 in bf16.
template <class T, int N, int K>
__global__ void __launch_bounds__(kThreads) conv1d_backward(Input<T> in, Backward<T> args) {
  const Place at = place_in<N>(in);
  if (at.channel >= in.channels) return;
  const Weights<N, K> weights(in, at.channel);
  Window<N, K> window(in, at.row, at.begin, at.channel);
  const int others = in.taps - 1;
  const T* ends = args.ends + static_cast<int64_t>(blockIdx.x) * others * in.channels;
  const int last = min(in.tokens, at.end + others);
  float dx[K][N] = {}, d_tap[K][N] = {}, d_bias[N] = {};
  const auto store_dx = [&](int token, const float(&values)[N]) {
    if (token >= at.begin && token < at.end) store<N>(args.dx.at(at.row, token) + at.channel, values);
  };
  int document = at.begin - K;  // tokens before its start are not seen
  for (int first = at.begin; first < last; first += kAtOnce) {
    const T *xs = in.x.at(at.row, first) + at.channel, *dys = args.dy.at(at.row, first) + at.channel;
    float x[kAtOnce][N], dy[kAtOnce][N];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int t = first + j;
      if (t >= last) break;
      load<N>(xs + j * in.x.token_stride, x[j]);
      load<N>(t < at.end ? dys + j * args.dy.token_stride : ends + (t - at.end) * in.channels + at.channel,
              dy[j]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int t = first + j;
      if (t >= last) break;
      const bool starts = in.starts(at.row, t);
      if (starts) document = t;
      window.push(x[j], starts);
      float g[N];
      window.sum(weights, g);
#pragma unroll
      for (int i = 0; i < N; ++i) g[i] = dy[j][i] * silu_slope(g[i], sigmoid(g[i]));
      const auto add = [&](auto choice) {
        constexpr bool kAll = decltype(choice)::value;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const bool seen = kAll || (k >= weights.unused && t - (K - 1 - k) >= document);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float later = k + 1 < K ? dx[k + 1 < K ? k + 1 : k][i] : 0.0f;
            dx[k][i] = seen ? fmaf(weights.tap[k][i], g[i], later) : later;
            if (seen && (kAll || t < at.end)) d_tap[k][i] = fmaf(g[i], window.x[k][i], d_tap[k][i]);
          }
          if (k == weights.unused) store_dx(t - others, dx[k]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) d_bias[i] += kAll || t < at.end ? g[i] : 0.0f;
      };
      if (weights.unused == 0 && t - others >= document && t < at.end)
        add(std::true_type());
      else
        add(std::false_type());
    }
  }
#pragma unroll
  for (int k = 1; k < K; ++k)
    if (k > weights.unused) store_dx(last - 1 - (K - 1 - k), dx[k]);  // at the end of the row
  float* partials =
      args.partials + static_cast<int64_t>(blockIdx.x) * (in.taps + 1) * in.channels + at.channel;
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k >= weights.unused) partials[(k - weights.unused) * in.channels + i] = d_tap[k][i];
    partials[in.taps * in.channels + i] = d_bias[i];
  }
}

// Column k C + c of the partial sums belongs to d_weight[c,k], or, after them, to d_bias[c].
struct Gradients {
  float* d_weight;
  int64_t weight_stride;
  float* d_bias;
  int64_t channels;
  int taps;
  __device__ float* operator()(int64_t column) const {
    const int64_t k = column / channels, channel = column % channels;
    return k < taps ? d_weight + channel * weight_stride + k : d_bias + channel;
  }
};

void check_weight(const Tensor& weight, const char* name, int64_t channels) {
  TRANSXSSM_CHECK(weight.rank() == 2 && weight.size(1) >= 1 && weight.size(1) <= kMaxTaps,
                  "{} is {}: a window has 1 to {} tokens", name, weight.shape().to_string(), kMaxTaps);
  expect(weight, name, DType::f32, {channels, weight.size(1)});
}

}  // namespace

void run(Stream& stream, const Conv1dForward& args) {
  const DType dtype = args.x.dtype();
  TRANSXSSM_CHECK(args.x.rank() == 3, "Conv1dForward.x is {}", args.x.shape().to_string());
  const int64_t rows = args.x.size(0), tokens = args.x.size(1), channels = args.x.size(2);
  expect(args.x, "Conv1dForward.x", dtype, {rows, tokens, channels});
  check_weight(args.weight, "Conv1dForward.weight", channels);
  const int64_t window = args.weight.size(1) - 1;
  expect(args.bias, "Conv1dForward.bias", DType::f32, {channels});
  expect_or_empty(args.start, "Conv1dForward.start", DType::u8, {rows, tokens});
  expect_or_empty(args.initial_window, "Conv1dForward.initial_window", dtype, {rows, window, channels});
  expect(args.y, "Conv1dForward.y", dtype, {rows, tokens, channels});
  expect_or_empty(args.final_window, "Conv1dForward.final_window", dtype, {rows, window, channels});
  if (args.x.num_elements() == 0) return;
  with_activation(args.x, "Conv1dForward.x", [&](auto type) {
    using T = decltype(type);
    const Input<T> in = make_input<T>(args.x, args.weight, args.bias, args.start, args.initial_window);
    const bool vectors = in_vectors(channels, kChannels<T>, {args.x, args.initial_window, args.y});
    with_vector<kChannels<T>>(vectors, [&](auto count) {
      with_taps(in.taps, [&](auto taps) {
        constexpr int N = decltype(count)::value, K = decltype(taps)::value;
        TRANSXSSM_LAUNCH(conv1d_forward<T, N, K>, launch_shape(in, rows, N), queue_of(stream), in,
                         sequences_of<T>(args.y));
      });
    });
    if (!args.final_window || window == 0) return;
    const auto tiles = static_cast<unsigned>((channels + kThreads - 1) / kThreads);
    TRANSXSSM_LAUNCH(conv1d_window<T>,
                     (LaunchShape{.grid = dim3(tiles, static_cast<unsigned>(rows)), .block = dim3(kThreads)}),
                     queue_of(stream), in, sequences_of<T>(args.final_window));
  });
}

void run(Stream& stream, const Conv1dBackward& args) {
  const DType dtype = args.x.dtype();
  TRANSXSSM_CHECK(args.x.rank() == 3, "Conv1dBackward.x is {}", args.x.shape().to_string());
  const int64_t rows = args.x.size(0), tokens = args.x.size(1), channels = args.x.size(2);
  const Shape shape{rows, tokens, channels};
  expect(args.x, "Conv1dBackward.x", dtype, shape);
  check_weight(args.weight, "Conv1dBackward.weight", channels);
  const int64_t window = args.weight.size(1) - 1;
  expect(args.bias, "Conv1dBackward.bias", DType::f32, {channels});
  expect_or_empty(args.start, "Conv1dBackward.start", DType::u8, {rows, tokens});
  expect(args.dy, "Conv1dBackward.dy", dtype, shape);
  expect(args.dx, "Conv1dBackward.dx", dtype, shape);
  expect(args.d_weight, "Conv1dBackward.d_weight", DType::f32, {channels, window + 1});
  expect(args.d_bias, "Conv1dBackward.d_bias", DType::f32, {channels});
  if (args.x.num_elements() == 0) return;
  with_activation(args.x, "Conv1dBackward.x", [&](auto type) {
    using T = decltype(type);
    const Input<T> in = make_input<T>(args.x, args.weight, args.bias, args.start, {});
    const int64_t stretches = rows * in.stretches, columns = (window + 2) * channels;
    const auto carve = [&](Carver& carver, Tensor& partials, Tensor& ends) {
      partials = carver.take(DType::f32, {stretches, columns});
      ends = carver.take(dtype, {stretches, window, channels});
    };
    Tensor partials, ends;
    Carver count_bytes;
    carve(count_bytes, partials, ends);
    Scratch scratch(stream, count_bytes.used());
    Carver carver = scratch.carver();
    carve(carver, partials, ends);
    const Backward<T> backward{.dy = sequences_of<const T>(args.dy),
                               .dx = sequences_of<T>(args.dx),
                               .ends = data_of<T>(ends),
                               .partials = data_of<float>(partials)};
    if (window > 0 && in.stretches > 1)
      TRANSXSSM_LAUNCH(conv1d_keep_ends<T>, launch_shape(in, rows, 1, static_cast<int>(window)),
                       queue_of(stream), in, backward);
    with_vector<kChannels<T>>(in_vectors(channels, kChannels<T>, {args.x, args.dy, args.dx}),
                              [&](auto count) {
                                with_taps(in.taps, [&](auto taps) {
                                  constexpr int N = decltype(count)::value, K = decltype(taps)::value;
                                  TRANSXSSM_LAUNCH(conv1d_backward<T, N, K>, launch_shape(in, rows, N),
                                                   queue_of(stream), in, backward);
                                });
                              });
    queue_column_sums(stream, backward.partials, stretches, columns,
                      Gradients{.d_weight = data_of<float>(args.d_weight),
                                .weight_stride = args.d_weight.stride(0),
                                .d_bias = data_of<float>(args.d_bias),
                                .channels = channels,
                                .taps = in.taps});
  });
}

}  // namespace transxssm::cuda
