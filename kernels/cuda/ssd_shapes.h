// What the kernels of the state-space scan are told: views, and how rows are cut.
//
// A row of tokens is cut into chunks of in.chunk tokens, a chunk into steps of 64 (the last of a chunk or row
// may be shorter), and the steps of a row into segments that run at once. Positions of R count from the start
// of a step: a state is in the frame of the next token, so steps need no frame of the chunk.
#pragma once

#include "kernels/cuda/ssd_tiles.h"

namespace transxssm::cuda::ssd {

// [B,T,H,*] in elements, with unit stride in the last dim.
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t row = 0, token = 0, head = 0;  // strides
  __device__ T* at(int64_t r, int64_t t, int64_t h) const { return data + r * row + t * token + h * head; }
};

// States [B, place, H, P, N] with [P,N] contiguous; absent: zeros to read, nothing to write.
struct States {
  void* data = nullptr;
  bool half = false;                     // bf16, else f32
  int64_t row = 0, place = 0, head = 0;  // strides in elements
  __device__ int64_t offset(int64_t r, int64_t p, int64_t h) const { return r * row + p * place + h * head; }
};

struct ScanArgs {
  Heads<const bf16> x, b, c;
  Heads<const float> u;
  const float *dt_bias, *a_log, *d_skip;  // [H]; d_skip may be null
  const float *cos, *sin;                 // [.., N/2] or null
  const float* c_scale;                   // [B,T] with strides, or null
  int64_t c_scale_row, c_scale_token;
  const uint8_t* start;  // the same
  int64_t start_row, start_token;
  int tokens, chunk, heads;
  int tiles;            // P / 64: blocks of a head
  int heads_per_group;  // H / G
  int steps_per_chunk;  // ceil(chunk / 64)
  int steps;            // of a row
  int segments, steps_per_segment;
};

// Which head, tile of the head dim, row and segment a block works on: blocks that share b and c are
// neighbours.
struct Place {
  int row, segment, head, tile, group;
  int slice;  // head * tiles + tile: sums of a head and of a group are over its slices
  // Grid (slices, segments from first_segment on, rows).
  __device__ explicit Place(const ScanArgs& args, int first_segment = 0)
      : row(static_cast<int>(blockIdx.z)),
        segment(static_cast<int>(blockIdx.y) + first_segment),
        head(static_cast<int>(blockIdx.x) / args.tiles),
        tile(static_cast<int>(blockIdx.x) % args.tiles),
        group(head / args.heads_per_group),
        slice(static_cast<int>(blockIdx.x)) {}
};

// A step of up to 64 tokens of a row.
struct Step {
  int64_t begin;  // its first token
  int length;
  __device__ Step(const ScanArgs& args, int step) {
    const int64_t chunk = step / args.steps_per_chunk;
    const int inside = step % args.steps_per_chunk * kTokens;
    begin = chunk * args.chunk + inside;
    const int64_t rest = args.tokens - begin;
    length = args.chunk - inside < kTokens ? args.chunk - inside : kTokens;
    if (rest < length) length = static_cast<int>(rest);
  }
};

__device__ inline float scale_of_c(const ScanArgs& args, int64_t row, int64_t token) {
  return args.c_scale == nullptr ? 1.0f : args.c_scale[row * args.c_scale_row + token * args.c_scale_token];
}

// Elements n and n + 1 (n even) of row p of a state.
template <int N>
__device__ inline float2 read_state(const States& states, int64_t offset, int p, int n) {
  if (states.data == nullptr) return make_float2(0.0f, 0.0f);
  const int64_t at = offset + p * N + n;
  if (states.half)
    return unpack_bf16(*reinterpret_cast<const uint32_t*>(static_cast<const bf16*>(states.data) + at));
  return *reinterpret_cast<const float2*>(static_cast<const float*>(states.data) + at);
}

// In place, for the tokens i of a step: b_i <- R(i) b_i and c_i <- c_scale_i R(i) c_i. Either tile may be
// absent; without tables R is the identity. Column n turns with n + N/2.
template <int N>
__device__ inline void rotate_rows(Tile<kTokens, N>* b, Tile<kTokens, N>* c, const ScanArgs& args, int row,
                                   const Step& step) {
  constexpr int kUnits = N / 16;
  if (args.cos == nullptr && (c == nullptr || args.c_scale == nullptr)) return;
  for (int i = static_cast<int>(threadIdx.x); i < step.length * kUnits; i += kThreads) {
    const int token = i / kUnits, unit = i % kUnits;
    float cos[8], sin[8];
    if (args.cos != nullptr) {
      load_vector(args.cos + token * (N / 2) + unit * 8, cos);
      load_vector(args.sin + token * (N / 2) + unit * 8, sin);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) cos[j] = 1.0f, sin[j] = 0.0f;
    }
    const auto rotate = [&](Tile<kTokens, N>& tile, float scale) {
      bf16 *low = tile.unit(token, unit), *high = tile.unit(token, unit + kUnits);
      float x[8], y[8];
      load_vector(low, x);
      load_vector(high, y);
#pragma unroll
      for (int j = 0; j < 8; ++j) rotate_pair(x[j], y[j], scale * cos[j], scale * sin[j]);
      store_vector(low, x);
      store_vector(high, y);
    };
    if (b != nullptr) rotate(*b, 1.0f);
    if (c != nullptr) rotate(*c, scale_of_c(args, row, step.begin + token));
  }
}

}  // namespace transxssm::cuda::ssd
