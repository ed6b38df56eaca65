#include "kernels/cpu/address.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <algorithm>
#include <cstring>

// Channels are taken in tiles, whose weights, transposed, and sums stay in the innermost cache while time
// runs. Guarded, because this file is included once an instruction set.
#ifndef TRANSXSSM_KERNELS_CPU_CONV1D_TILE_
#define TRANSXSSM_KERNELS_CPU_CONV1D_TILE_
namespace transxssm::cpu {
inline constexpr int64_t kConvTile = 128;
inline constexpr int64_t kMaxConvTaps = 8;
inline constexpr int64_t kUsualConvTaps = 4;  // Mamba-2: loops over them are unrolled
inline int64_t num_conv_tiles(int64_t channels) {
  return (channels + kConvTile - 1) / kConvTile;
}
}  // namespace transxssm::cpu
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conv1d.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/silu-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// The parameters of one tile of channels, [K, tile].
template <class A>
struct TileWeights {
  TileWeights(const Tensor& weight, const Tensor& bias_of_all, int64_t tile)
      : begin(tile * kConvTile),
        count(std::min(kConvTile, weight.size(0) - begin)),
        taps(weight.size(1)),
        bias(bias_of_all.data<A>() + begin) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < taps; ++k) tap[k][i] = *address<A>(weight, begin + i, k);
  }
  int64_t begin, count, taps;
  const A* bias;
  A tap[kMaxConvTaps][kConvTile];
};

// The inputs that token t of row b sees: in[k] for k in [first, K), the tile's channels of token t - K + 1 +
// k.
template <class T>
struct Taps {
  Taps(const Tensor& x, const Tensor& start, const Tensor& window, const TileWeights<Arithmetic<T>>& tile,
       int64_t b, int64_t t) {
    const auto* starts = start ? address<const uint8_t>(start, b) : nullptr;
    first = tile.taps;
    for (int64_t token = t; first > 0; --token) {
      if (token < 0 && !window) break;
      --first;
      in[first] = token >= 0 ? address<const T>(x, b, token, tile.begin)
                             : address<const T>(window, b, token + tile.taps - 1, tile.begin);
      if (token >= 0 && starts && starts[token]) break;
    }
  }
  int64_t first;
  const T* in[kMaxConvTaps];
};

// bias + sum over k of weight[k] in[k], for the channels of one vector.
template <class T, class D>
HWY_INLINE hn::Vec<D> sum_taps(D d, const TileWeights<Arithmetic<T>>& tile, const Taps<T>& taps,
                               int64_t first, int64_t end, int64_t i) {
  auto sum = load(d, tile.bias + i);
  for (int64_t k = first; k < end; ++k)
    sum = hn::MulAdd(load(d, tile.tap[k] + i), load(d, taps.in[k] + i), sum);
  return sum;
}

// One token of a tile. kFull: the number of taps where it is known and all are seen, else zero.
template <int64_t kFull, class T>
HWY_INLINE void forward_token(const TileWeights<Arithmetic<T>>& tile, const Taps<T>& taps, T* y) {
  const int64_t first = kFull ? 0 : taps.first, end = kFull ? kFull : tile.taps;
  for_lanes<Arithmetic<T>>(tile.count, [&](auto d, int64_t i) HWY_ATTR {
    const auto sum = sum_taps(d, tile, taps, first, end, i);
    store(hn::Mul(sum, sigmoid<T>(d, sum)), d, y + i);
  });
}

// Tokens [begin, end) of all rows in a sequence.
template <class T>
void forward(const Conv1dForward& args, int64_t begin, int64_t end) {
  const int64_t tokens = args.x.size(1), tiles = num_conv_tiles(args.x.size(2));
  for (int64_t index = 0; index < tiles; ++index) {
    const TileWeights<Arithmetic<T>> tile(args.weight, args.bias, index);
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / tokens, t = token % tokens;
      const Taps<T> taps(args.x, args.start, args.initial_window, tile, b, t);
      T* y = address<T>(args.y, b, t, tile.begin);
      if (tile.taps == kUsualConvTaps && taps.first == 0)
        forward_token<kUsualConvTaps>(tile, taps, y);
      else
        forward_token<0>(tile, taps, y);
    }
  }
}

// Sums over tokens of one tile: of g x for each tap, and, last, of g.
template <class A>
struct TileSums {
  A of[kMaxConvTaps + 1][kConvTile] = {};
};

// Gradients of a tile's inputs that later tokens still add to, in the rows token % kMaxConvTaps.
template <class A>
struct Pending {
  A* operator[](int64_t token) { return rows[token % kMaxConvTaps]; }
  A rows[kMaxConvTaps][kConvTile];
};

// With g = dy silu'(sum), this token adds weight[k] g to dx of each token it sees; its own dx is written
// first.
template <int64_t kFull, class T, class A>
HWY_INLINE void backward_token(const TileWeights<A>& tile, const Taps<T>& taps, const T* dy,
                               A* const (&dx)[kMaxConvTaps], TileSums<A>& sums) {
  const int64_t first = kFull ? 0 : taps.first, end = kFull ? kFull : tile.taps;
  for_lanes<A>(tile.count, [&](auto d, int64_t i) HWY_ATTR {
    const auto sum = sum_taps(d, tile, taps, first, end, i);
    const auto g = hn::Mul(load(d, dy + i), silu_slope(d, sum, sigmoid<T>(d, sum)));
    for (int64_t k = first; k < end; ++k) {
      A* d_tap = sums.of[k] + i;
      store(hn::MulAdd(g, load(d, taps.in[k] + i), load(d, d_tap)), d, d_tap);
      const auto later = k == end - 1 ? hn::Zero(d) : load(d, dx[k] + i);
      store(hn::MulAdd(g, load(d, tile.tap[k] + i), later), d, dx[k] + i);
    }
    A* d_bias = sums.of[end] + i;
    store(hn::Add(g, load(d, d_bias)), d, d_bias);
  });
}

// One tile of one row, token after token, so that dy_t is read before dx_t is written: dx may be dy. Writes
// the row's sums over tokens to `totals` [K+1,C].
template <class T>
void backward(const Conv1dBackward& args, const Tensor& totals, int64_t b, int64_t index) {
  using A = Arithmetic<T>;
  const int64_t tokens = args.x.size(1);
  const TileWeights<A> tile(args.weight, args.bias, index);
  TileSums<A> sums;  // of at most kRowsPerPartial tokens
  Pending<A> pending;
  for (int64_t k = 0; k <= tile.taps; ++k)
    std::fill_n(address<double>(totals, k, tile.begin), tile.count, 0.0);
  const auto finish = [&](int64_t token) HWY_ATTR {
    const A* from = pending[token];
    T* to = address<T>(args.dx, b, token, tile.begin);
    for_lanes<A>(tile.count, [&](auto d, int64_t i) HWY_ATTR { store(load(d, from + i), d, to + i); });
  };
  for (int64_t t = 0; t < tokens; ++t) {
    const Taps<T> taps(args.x, args.start, Tensor(), tile, b, t);
    const T* dy = address<const T>(args.dy, b, t, tile.begin);
    A* dx[kMaxConvTaps];
    for (int64_t k = taps.first; k < tile.taps; ++k) dx[k] = pending[t - tile.taps + 1 + k];
    if (tile.taps == kUsualConvTaps && taps.first == 0)
      backward_token<kUsualConvTaps>(tile, taps, dy, dx, sums);
    else
      backward_token<0>(tile, taps, dy, dx, sums);
    if (t - tile.taps + 1 >= 0) finish(t - tile.taps + 1);
    if ((t + 1) % kRowsPerPartial != 0 && t + 1 != tokens) continue;
    for (int64_t k = 0; k <= tile.taps; ++k) {
      double* total = address<double>(totals, k, tile.begin);
      for (int64_t i = 0; i < tile.count; ++i) total[i] += static_cast<double>(sums.of[k][i]);
    }
    sums = {};
  }
  for (int64_t t = std::max<int64_t>(0, tokens - tile.taps + 1); t < tokens; ++t) finish(t);
}

void forward_tokens(const Conv1dForward& args, int64_t begin, int64_t end) {
  with_type(args.x.dtype(), [&](auto type) { forward<decltype(type)>(args, begin, end); });
}
void backward_tile(const Conv1dBackward& args, const Tensor& totals, int64_t b, int64_t index) {
  with_type(args.x.dtype(), [&](auto type) { backward<decltype(type)>(args, totals, b, index); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_tokens);
HWY_EXPORT(backward_tile);

namespace {

void check_weight(const Tensor& weight, const char* name, DType dtype, int64_t channels) {
  TRANSXSSM_CHECK(weight.rank() == 2 && weight.size(1) >= 1 && weight.size(1) <= kMaxConvTaps,
                  "{} is {}: a window has 1 to {} tokens", name, weight.shape().to_string(), kMaxConvTaps);
  expect(weight, name, dtype, {channels, weight.size(1)});
}

// The last K-1 inputs of row b, zero where they are of another document than the last. Oldest first, so that
// the initial window may be overwritten: what moves, moves towards the front.
void store_window(const Conv1dForward& args, int64_t b) {
  const int64_t tokens = args.x.size(1), window = args.final_window.size(1);
  const size_t bytes = static_cast<size_t>(args.x.size(2) * dtype_bytes(args.x.dtype()));
  int64_t first =
      args.initial_window ? -window : 0;  // token the last document starts at, or the oldest there is
  for (int64_t t = std::max<int64_t>(0, tokens - window); args.start && t < tokens; ++t)
    if (args.start.at<uint8_t>({b, t})) first = t;
  const auto row = [&](const Tensor& tensor, int64_t t) { return tensor.select(0, b).select(0, t).raw(); };
  for (int64_t j = 0; j < window; ++j) {
    const int64_t token = tokens - window + j;
    void* to = row(args.final_window, j);
    if (token < first)
      std::memset(to, 0, bytes);
    else
      std::memmove(to, token >= 0 ? row(args.x, token) : row(args.initial_window, token + window), bytes);
  }
}

// total[c, k] += sum over rows of totals[b, k, c], in order.
template <class T>
void add_totals(const Tensor& totals, const Tensor& d_weight, const Tensor& d_bias, int64_t begin,
                int64_t end) {
  const int64_t taps = d_weight.size(1);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t k = 0; k <= taps; ++k) {
      T* gradient = k < taps ? address<T>(d_weight, c, k) : address<T>(d_bias, c);
      double sum = 0;
      for (int64_t b = 0; b < totals.size(0); ++b) sum += *address<double>(totals, b, k, c);
      *gradient = static_cast<T>(static_cast<double>(*gradient) + sum);
    }
}

}  // namespace

void run(Stream& stream, const Conv1dForward& args) {
  expect_activation(args.x, "Conv1dForward.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  TRANSXSSM_CHECK(args.x.rank() == 3, "Conv1dForward.x is {}", args.x.shape().to_string());
  const int64_t rows = args.x.size(0), tokens = args.x.size(1), channels = args.x.size(2);
  expect(args.x, "Conv1dForward.x", dtype, {rows, tokens, channels});
  check_weight(args.weight, "Conv1dForward.weight", sums, channels);
  const int64_t window = args.weight.size(1) - 1;
  expect(args.bias, "Conv1dForward.bias", sums, {channels});
  expect_or_empty(args.start, "Conv1dForward.start", DType::u8, {rows, tokens});
  expect_or_empty(args.initial_window, "Conv1dForward.initial_window", dtype, {rows, window, channels});
  expect(args.y, "Conv1dForward.y", dtype, {rows, tokens, channels});
  expect_or_empty(args.final_window, "Conv1dForward.final_window", dtype, {rows, window, channels});
  parallel_ranges(stream, rows * tokens, row_grain(channels), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(forward_tokens)(args, begin, end);
  });
  if (args.final_window)
    for (int64_t b = 0; b < rows; ++b) store_window(args, b);
}

void run(Stream& stream, const Conv1dBackward& args) {
  expect_activation(args.x, "Conv1dBackward.x");
  const DType dtype = args.x.dtype(), sums = arithmetic_dtype(dtype);
  TRANSXSSM_CHECK(args.x.rank() == 3, "Conv1dBackward.x is {}", args.x.shape().to_string());
  const int64_t rows = args.x.size(0), tokens = args.x.size(1), channels = args.x.size(2);
  const Shape shape{rows, tokens, channels};
  expect(args.x, "Conv1dBackward.x", dtype, shape);
  check_weight(args.weight, "Conv1dBackward.weight", sums, channels);
  const int64_t taps = args.weight.size(1);
  expect(args.bias, "Conv1dBackward.bias", sums, {channels});
  expect_or_empty(args.start, "Conv1dBackward.start", DType::u8, {rows, tokens});
  expect(args.dy, "Conv1dBackward.dy", dtype, shape);
  expect(args.dx, "Conv1dBackward.dx", dtype, shape);
  expect(args.d_weight, "Conv1dBackward.d_weight", sums, {channels, taps});
  expect(args.d_bias, "Conv1dBackward.d_bias", sums, {channels});
  const Shape shape_of_totals{rows, taps + 1, channels};
  Scratch scratch(stream, carved_bytes(DType::f64, shape_of_totals));
  const Tensor totals = scratch.carver().take(DType::f64, shape_of_totals);
  const int64_t tiles = num_conv_tiles(channels);
  parallel_items(stream, rows * tiles, [&](int64_t item, int) {
    HWY_DYNAMIC_DISPATCH(backward_tile)(args, totals.select(0, item / tiles), item / tiles, item % tiles);
  });
  parallel_ranges(stream, channels, row_grain(rows * taps), [&](int64_t begin, int64_t end) {
    sums == DType::f32 ? add_totals<float>(totals, args.d_weight, args.d_bias, begin, end)
                       : add_totals<double>(totals, args.d_weight, args.d_bias, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
