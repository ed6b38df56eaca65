// What the kernels of attention are handed: strided views and sizes.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/cuda/gpu.h"

namespace transxssm::cuda {

// A [B,T,H,P] tensor with unit stride in P; every row of P elements is aligned to 16 bytes.
struct HeadsView {
  HeadsView() = default;
  explicit HeadsView(const Tensor& x)
      : data(static_cast<bf16*>(x.raw())),
        row_stride(x.stride(0)),
        token_stride(x.stride(1)),
        head_stride(x.stride(2)) {}
  __device__ bf16* at(int row, int token, int head) const {
    return data + row * row_stride + token * token_stride + head * head_stride;
  }
  bf16* data = nullptr;
  int64_t row_stride = 0, token_stride = 0, head_stride = 0;
};

struct AttentionShape {
  template <class Args>
  explicit AttentionShape(const Args& args)
      : rows(static_cast<int>(args.q.size(0))),
        queries(static_cast<int>(args.q.size(1))),
        heads(static_cast<int>(args.q.size(2))),
        keys(static_cast<int>(args.k.size(1))),
        key_heads(static_cast<int>(args.k.size(2))),
        group(heads / key_heads),
        offset(static_cast<int>(args.query_offset)),
        scale(static_cast<float>(args.scale)),
        scale_log2(static_cast<float>(args.scale * 1.4426950408889634)),
        first_key(static_cast<const int32_t*>(args.first_key.raw())),
        first_key_stride(args.first_key ? args.first_key.stride(0) : 0),
        lse_row_stride(args.log_sum_exp ? args.log_sum_exp.stride(0) : 0),
        lse_head_stride(args.log_sum_exp ? args.log_sum_exp.stride(1) : 0) {}

  // The first key that a query sees; not decreasing in a row. A query behind the last one counts as the last.
  __device__ int first_key_of(int row, int query) const {
    if (first_key == nullptr) return 0;
    return first_key[row * first_key_stride + (query < queries ? query : queries - 1)];
  }

  // Of log_sum_exp [B,H,Tq].
  __device__ int64_t lse_at(int row, int head) const { return row * lse_row_stride + head * lse_head_stride; }

  int rows, queries, heads, keys, key_heads;
  int group;  // query heads that share a key head
  int offset;
  float scale, scale_log2;  // scale_log2: for exponentials of base 2
  const int32_t* first_key;
  int64_t first_key_stride, lse_row_stride, lse_head_stride;
};

// Scores [16 M queries, 8 N keys] of a warp become -infinity where a query does not see a key.
template <int M, int N>
__device__ inline void hide_unseen(float (&scores)[M][N][4], const AttentionShape& shape, int row,
                                   int first_query, int first_key) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + m * 16 + half * 8 + lane / 4;
      const int low = shape.first_key_of(row, query) - first_key, high = query + shape.offset - first_key;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i;
          if (key < low || key > high) scores[m][n][half * 2 + i] = -INFINITY;
        }
    }
}

// The same for scores [16 M keys, 8 N queries].
template <int M, int N>
__device__ inline void hide_unseen_transposed(float (&scores)[M][N][4], const AttentionShape& shape, int row,
                                              int first_query, int first_key) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = first_query + n * 8 + lane % 4 * 2 + i;
      const int low = shape.first_key_of(row, query) - first_key, high = query + shape.offset - first_key;
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = m * 16 + half * 8 + lane / 4;
          if (key < low || key > high) scores[m][n][half * 2 + i] = -INFINITY;
        }
    }
}

}  // namespace transxssm::cuda
