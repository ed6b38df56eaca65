// What both directions of the short convolution share: its inputs, how threads share them, and the window
// that slides over a thread's tokens in registers.
#pragma once

#include "kernels/cuda/rows.h"

namespace transxssm::cuda::conv {

inline constexpr int kMaxTaps = 8, kUsualTaps = 4;  // Mamba-2 has 4
inline constexpr int kThreads = 128;
inline constexpr int kAtOnce = 4;  // tokens on their way together
// Channels of a thread: a warp's 4-byte accesses are one line of 128 bytes, and registers are left for the
// taps.
template <class T>
inline constexpr int kChannels = 4 / static_cast<int>(sizeof(T));

// [B,T,C] as a kernel takes it.
template <class T>
struct Sequences {
  T* data = nullptr;
  int64_t row_stride = 0, token_stride = 0;
  __device__ T* at(int64_t row, int64_t token) const {
    return data + row * row_stride + token * token_stride;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};
template <class T>
Sequences<T> sequences_of(const Tensor& tensor) {
  if (!tensor) return {};
  return {data_of<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// What both directions read, and how threads share it: each has its channels of a stretch of one row's
// tokens, one after the other.
template <class T>
struct Input {
  Sequences<const T> x;
  const float* weight;  // [C,K]
  int64_t weight_stride;
  const float* bias;
  const uint8_t* start;  // [B,T] or null
  int64_t start_stride;
  Sequences<const T> window;  // [B,K-1,C], or none: zeros
  int64_t channels;
  int tokens, taps;
  int stretch_tokens;
  unsigned stretches;  // of a row
  __device__ bool starts(int64_t row, int token) const { return start && start[row * start_stride + token]; }
};
struct Place {
  int64_t row, channel;
  int begin, end;
};
template <int N, class T>
__device__ inline Place place_in(const Input<T>& in) {
  const int begin = static_cast<int>(blockIdx.x % in.stretches) * in.stretch_tokens;
  return {.row = blockIdx.x / in.stretches,
          .channel = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N,
          .begin = begin,
          .end = min(in.tokens, begin + in.stretch_tokens)};
}

// The taps of N channels, oldest first; the first `unused` of K are beyond the window.
template <int N, int K>
struct Weights {
  int unused;
  float tap[K][N], bias[N];
  template <class T>
  __device__ Weights(const Input<T>& in, int64_t channel) : unused(K - in.taps) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      bias[i] = in.bias[channel + i];
#pragma unroll
      for (int k = 0; k < K; ++k)
        tap[k][i] = k < unused ? 0.0f : in.weight[(channel + i) * in.weight_stride + k - unused];
    }
  }
};

// The last K inputs of N channels, oldest first, zero where they are not seen.
template <int N, int K>
struct Window {
  float x[K][N] = {};
  // What the token `first` sees beside itself.
  template <class T>
  __device__ Window(const Input<T>& in, int64_t row, int first, int64_t channel) {
    bool seen = !in.starts(row, first);
#pragma unroll
    for (int back = 1; back < K; ++back) {
      const int token = first - back;
      if (back >= in.taps || (token < 0 && !in.window)) seen = false;
      if (!seen) continue;
      load<N>((token >= 0 ? in.x.at(row, token) : in.window.at(row, token + in.taps - 1)) + channel,
              x[K - back]);
      seen = token < 0 || !in.starts(row, token);
    }
  }
  // The next token; one that starts a document does not see the others.
  __device__ void push(const float (&next)[N], bool starts) {
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) x[k][i] = k + 1 < K ? x[k + 1 < K ? k + 1 : k][i] : next[i];
    if (!starts) return;
#pragma unroll
    for (int k = 0; k + 1 < K; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) x[k][i] = 0;
  }
  // bias + sum over taps.
  __device__ void sum(const Weights<N, K>& weights, float (&sums)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = weights.bias[i];
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k >= weights.unused) {  // what is beyond the window may be a NaN
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = fmaf(weights.tap[k][i], x[k][i], sums[i]);
      }
  }
};

// Stretches as long as leave enough blocks (132 multiprocessors on H100), for each reads some of the next.
template <class T>
Input<T> make_input(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& start,
                    const Tensor& window) {
  constexpr int kShortest = 32, kLongest = 256;
  constexpr int64_t kEnoughBlocks = 2048;
  const int64_t rows = x.size(0), tokens = x.size(1), channels = x.size(2);
  const int64_t tiles = (channels + kThreads * kChannels<T> - 1) / (kThreads * kChannels<T>);
  int stretch = kShortest;
  while (stretch < kLongest && rows * tiles * (tokens / (2 * stretch)) >= kEnoughBlocks) stretch *= 2;
  return {.x = sequences_of<const T>(x),
          .weight = data_of<const float>(weight),
          .weight_stride = weight.stride(0),
          .bias = data_of<const float>(bias),
          .start = data_of<const uint8_t>(start),
          .start_stride = start ? start.stride(0) : 0,
          .window = sequences_of<const T>(window),
          .channels = channels,
          .tokens = static_cast<int>(tokens),
          .taps = static_cast<int>(weight.size(1)),
          .stretch_tokens = stretch,
          .stretches = static_cast<unsigned>((tokens + stretch - 1) / stretch)};
}
template <class T>
LaunchShape launch_shape(const Input<T>& in, int64_t rows, int channels_of_thread, int deep = 1) {
  const int64_t columns = int64_t{kThreads} * channels_of_thread;
  return {
      .grid = dim3(static_cast<unsigned>(rows) * in.stretches,
                   static_cast<unsigned>((in.channels + columns - 1) / columns), static_cast<unsigned>(deep)),
      .block = dim3(kThreads)};
}

// Calls fn with the number of taps that a kernel is compiled for.
template <class Fn>
void with_taps(int taps, Fn&& fn) {
  if (taps <= kUsualTaps)
    fn(std::integral_constant<int, kUsualTaps>());
  else
    fn(std::integral_constant<int, kMaxTaps>());
}

}  // namespace transxssm::cuda::conv
