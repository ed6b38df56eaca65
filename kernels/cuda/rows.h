// Views, places and loads that the element-wise and row-wise kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/cpu/rows.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/queue.h"
#include "runtime/stream.h"

namespace transxssm::cuda {

using cpu::expect;
using cpu::expect_or_empty;

// Rows of a [T,W] tensor as a kernel takes them: unit stride in W, any stride in T. False for an empty
// tensor.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;  // in elements
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
  __device__ explicit operator bool() const { return data != nullptr; }
};
template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.raw()), tensor.rank() == 2 ? tensor.stride(0) : 0};
}
template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.raw());
}

// Calls fn(T{}) with the type a kernel gives to an activation of this tensor's dtype. An internal error for
// others.
template <class Fn>
void with_activation(const Tensor& tensor, const char* name, Fn&& fn) {
  TRANSXSSM_CHECK(tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16,
                  "{} is {}: GPUs compute on f32 and bf16", name, dtype_name(tensor.dtype()));
  if (tensor.dtype() == DType::f32)
    fn(float{});
  else
    fn(bf16{});
}
// The same for the residual stream and what branches from it: calls fn(S{}, B{}). A bf16 stream has bf16
// branches.
template <class Fn>
void with_stream_and_branch(const Tensor& stream, const char* stream_name, const Tensor& branch,
                            const char* branch_name, Fn&& fn) {
  with_activation(stream, stream_name, [&](auto s) {
    with_activation(branch, branch_name, [&](auto b) {
      constexpr bool kNarrows = std::is_same_v<decltype(s), bf16> && std::is_same_v<decltype(b), float>;
      TRANSXSSM_CHECK(!kNarrows, "{} is f32 beside {} in bf16", branch_name, stream_name);
      if constexpr (!kNarrows) fn(s, b);
    });
  });
}

// Elements one thread moves at a time where the narrower of two types gives it 16 bytes.
template <class S, class B = S>
inline constexpr int kVector = 16 / static_cast<int>(std::min(sizeof(S), sizeof(B)));

// True where rows of `width` elements can be moved `vector` elements at a time: every row of every tensor
// (that is not empty) begins at a multiple of 16 bytes and has whole vectors.
inline bool in_vectors(int64_t width, int vector, std::initializer_list<Tensor> tensors) {
  if (width % vector != 0) return false;
  for (const Tensor& tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor.raw()) % 16 != 0) return false;
    for (int dim = 0; dim + 1 < tensor.rank(); ++dim)
      if (tensor.size(dim) > 1 && tensor.stride(dim) * dtype_bytes(tensor.dtype()) % 16 != 0) return false;
  }
  return true;
}
// Calls fn(integral_constant) with `vector`, or with one where rows cannot be moved in vectors.
template <int kCount, class Fn>
void with_vector(bool vectors, Fn&& fn) {
  if (vectors)
    fn(std::integral_constant<int, kCount>());
  else
    fn(std::integral_constant<int, 1>());
}

// N elements by one access of up to 16 bytes, or several of 16.
template <int N, class T>
__device__ inline void load(const T* p, float (&values)[N]) {
  if constexpr (N * sizeof(T) % 16 == 0) {
    load_vector<N>(p, values);
  } else if constexpr (N == 2 && sizeof(T) == 2) {
    const float2 pair = unpack_bf16(*reinterpret_cast<const uint32_t*>(p));
    values[0] = pair.x, values[1] = pair.y;
  } else {
    static_assert(N == 1);
    values[0] = to_float(*p);
  }
}
template <int N, class T>
__device__ inline void store(T* p, const float (&values)[N]) {
  if constexpr (N * sizeof(T) % 16 == 0) {
    store_vector<N>(p, values);
  } else if constexpr (N == 2 && sizeof(T) == 2) {
    *reinterpret_cast<uint32_t*>(p) = pack_bf16(values[0], values[1]);
  } else {
    static_assert(N == 1);
    *p = from_float<T>(values[0]);
  }
}

// How the elements of [rows, width] are shared among threads, N at a time: a warp has up to 32 neighbouring
// vectors of a row (or several narrow rows), a block's eight warps those below it, or beside it where there
// are fewer rows.
inline constexpr int kRowThreads = 256;
struct RowGrid {
  int64_t rows = 0, width = 0;
  int lanes_log2 = 0;         // threads side by side in a row
  unsigned tiles = 1;         // blocks side by side in a row
  int64_t rows_of_block = 1;  // a thread takes every (kRowThreads >> lanes_log2)-th of them
};
inline RowGrid make_row_grid(int64_t rows, int64_t width, int vector) {
  RowGrid grid{.rows = rows, .width = width};
  const int64_t vectors = (width + vector - 1) / vector;
  const auto more_lanes = [&] {  // beyond a warp only where rows are too few for a block's lines
    return (int64_t{1} << grid.lanes_log2) < vectors &&
           ((1 << grid.lanes_log2) < kWarp || rows <= kRowThreads >> (grid.lanes_log2 + 1));
  };
  while (more_lanes()) ++grid.lanes_log2;
  const int64_t lanes = int64_t{1} << grid.lanes_log2;
  grid.tiles = static_cast<unsigned>((vectors + lanes - 1) / lanes);
  grid.rows_of_block = kRowThreads >> grid.lanes_log2;
  return grid;
}
inline int64_t num_strips(const RowGrid& grid) {
  return (grid.rows + grid.rows_of_block - 1) / grid.rows_of_block;
}
inline LaunchShape launch_shape(const RowGrid& grid) {
  return {.grid = dim3(static_cast<unsigned>(num_strips(grid)) * grid.tiles), .block = dim3(kRowThreads)};
}
// Where a thread begins.
struct RowPlace {
  int64_t strip, row, column;
  int lane, line;  // of the thread in its block
  bool inside;
};
template <int N>
__device__ inline RowPlace row_place(const RowGrid& grid) {
  RowPlace place;
  place.lane = static_cast<int>(threadIdx.x) & ((1 << grid.lanes_log2) - 1);
  place.line = static_cast<int>(threadIdx.x) >> grid.lanes_log2;
  place.strip = blockIdx.x / grid.tiles;
  place.row = place.strip * grid.rows_of_block + place.line;
  place.column = ((static_cast<int64_t>(blockIdx.x % grid.tiles) << grid.lanes_log2) + place.lane) * N;
  place.inside = place.row < grid.rows && place.column < grid.width;
  return place;
}

// Threads of a block that has one row, a vector a thread.
inline unsigned threads_of_row(int64_t width, int vector, int64_t most = 1024) {
  const int64_t vectors = (width + vector - 1) / vector;
  return static_cast<unsigned>(
      std::min(most, std::max<int64_t>(kWarp, (vectors + kWarp - 1) / kWarp * kWarp)));
}

// 1 / (1 + exp(-x)), to a few units in the last place for every x; a NaN stays one.
__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}
// The derivative of silu(x) = x s, s the sigmoid of x.
__device__ inline float silu_slope(float x, float s) {
  return s * fmaf(x, 1.0f - s, 1.0f);
}

}  // namespace transxssm::cuda
