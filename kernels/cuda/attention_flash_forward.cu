// Per block of queries, keys upwards (Dao 2023, "FlashAttention-2"):
//   S = q k^T     m' = max(m, S)     P = exp(scale (S - m'))     l = c l + sum P     O = c O + P v
// with c = exp(scale (m - m')); at the end O / l and scale m + log l. Few queries over many keys: the keys
// are cut into parts, and the parts' m, l and O joined in a second kernel.
//
// Work: 4 P products and one exponential a visible pair of query and key. Bytes: q, k, v and out once, and
// k and v again for every further block of queries, mostly from L2.
#include <algorithm>

#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_shapes.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/queue.h"

namespace transxssm::cuda {

namespace {

struct ForwardArgs {
  AttentionShape shape;
  HeadsView q, k, v, out;
  float* log_sum_exp;  // [B,H,Tq] or null
  // Where the keys are cut into several parts, what each part has summed, per row, head and query:
  float* part_out = nullptr;          // [parts, B,H,Tq, P], not yet divided by the sums
  float2* part_statistics = nullptr;  // [parts, B,H,Tq]: the maximum, scaled for base 2, and the sum
};

template <int P, int kQueries, int kKeys>
struct ForwardShared {
  bf16 q[kQueries * P];
  bf16 k[2][kKeys * P];
  bf16 v[2][kKeys * P];
};

// Maxima and sums of a warp's rows, and what has been summed of P v.
template <int P, int M>
struct OnlineSoftmax {
  float out[M][P / 8][4];
  float max[M][2], sum[M][2];  // of rows g and g + 8; max of the scores before scaling

  __device__ void reset() {
    clear(out);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) max[m][half] = -INFINITY, sum[m][half] = 0;
  }

  // Scores become weights; what was summed so far moves to the new maxima. `sum` stays this lane's share.
  template <int N>
  __device__ void update(float (&scores)[M][N][4], float scale_log2) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = max[m][half];
#pragma unroll
        for (int n = 0; n < N; ++n)
          top = fmaxf(top, fmaxf(scores[m][n][half * 2], scores[m][n][half * 2 + 1]));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        // A row that has seen no key yet: any finite value gives it weights of zero.
        const float shift = top == -INFINITY ? 0.0f : top * scale_log2;
        const float correction = fast_exp2(max[m][half] * scale_log2 - shift);
        max[m][half] = top;
        float total = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = half * 2; i < half * 2 + 2; ++i) {
            scores[m][n][i] = fast_exp2(scores[m][n][i] * scale_log2 - shift);
            total += scores[m][n][i];
          }
        sum[m][half] = sum[m][half] * correction + total;
#pragma unroll
        for (int n = 0; n < P / 8; ++n) {
          out[m][n][half * 2] *= correction;
          out[m][n][half * 2 + 1] *= correction;
        }
      }
  }

  // Sums over the lanes of a row.
  __device__ void add_lanes() {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[m][half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        sum[m][half] = total;
      }
  }

  __device__ void divide() {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = 1 / sum[m][half];
#pragma unroll
        for (int n = 0; n < P / 8; ++n) {
          out[m][n][half * 2] *= factor;
          out[m][n][half * 2 + 1] *= factor;
        }
      }
  }
};

// What a warp has summed over one part of the keys; `at`: of the part, row and head.
template <int P, int M>
__device__ void store_part(const ForwardArgs& args, const OnlineSoftmax<P, M>& state, int64_t at,
                           int first_query) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + m * 16 + half * 8 + lane / 4;
      if (query >= args.shape.queries) continue;
      const int64_t line = at * args.shape.queries + query;
#pragma unroll
      for (int n = 0; n < P / 8; ++n)
        *reinterpret_cast<float2*>(args.part_out + line * P + n * 8 + lane % 4 * 2) =
            make_float2(state.out[m][n][half * 2], state.out[m][n][half * 2 + 1]);
      if (lane % 4 == 0)
        args.part_statistics[line] =
            make_float2(state.max[m][half] * args.shape.scale_log2, state.sum[m][half]);
    }
}

template <int P, int kWarps, int M, int kKeys, bool kParts, template <int, int> class Queries>
__global__ void __launch_bounds__(kWarps* kWarp, 1) attention_forward(const ForwardArgs args) {
  constexpr int kThreads = kWarps * kWarp, kQueries = kWarps * 16 * M, N = kKeys / 8;
  const AttentionShape& shape = args.shape;
  auto& shared = shared_memory<ForwardShared<P, kQueries, kKeys>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * M;
  const int row = static_cast<int>(blockIdx.x) / shape.heads,
            head = static_cast<int>(blockIdx.x) % shape.heads;
  const int key_head = head / shape.group;
  // The last queries see the most keys: they go first.
  const int query0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;
  const int queries = min(kQueries, shape.queries - query0);
  const int visible = query0 + queries + shape.offset;  // keys before this one
  int first_tile = shape.first_key_of(row, query0) / kKeys, tiles = (visible + kKeys - 1) / kKeys;
  if constexpr (kParts) {
    const int part = (tiles - first_tile + static_cast<int>(gridDim.z) - 1) / static_cast<int>(gridDim.z);
    first_tile += static_cast<int>(blockIdx.z) * part;
    tiles = min(tiles, first_tile + part);  // perhaps none
  }

  const auto load_keys = [&](int tile) {
    const int key0 = tile * kKeys, stage = tile % 2, valid = visible - key0;
    load_tile<kThreads, kKeys, P>(shared.k[stage], args.k.at(row, key0, key_head), args.k.token_stride,
                                  valid);
    load_tile<kThreads, kKeys, P>(shared.v[stage], args.v.at(row, key0, key_head), args.v.token_stride,
                                  valid);
  };
  load_tile<kThreads, kQueries, P>(shared.q, args.q.at(row, query0, head), args.q.token_stride, queries);
  load_keys(first_tile);
  commit_copies();
  wait_copies<0>();
  sync_block();
  Queries<P, M> q;
  q.load(shared.q, warp_row);

  const int first_query = query0 + warp_row, last_query = min(first_query + 16 * M, shape.queries) - 1;
  const int last_first_key = shape.first_key_of(row, last_query);
  OnlineSoftmax<P, M> state;
  state.reset();
  for (int tile = first_tile; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      load_keys(tile + 1);
      commit_copies();
    }
    const int key0 = tile * kKeys;
    // Some of this warp's queries see the tile.
    if (key0 <= last_query + shape.offset && first_query < shape.queries) {
      float scores[M][N][4];
      multiply<P>(scores, q, shared.k[tile % 2], 0);
      if (key0 + kKeys - 1 > first_query + shape.offset || last_first_key > key0)
        hide_unseen(scores, shape, row, first_query, key0);
      state.update(scores, shape.scale_log2);
      accumulate<P>(state.out, scores, shared.v[tile % 2], 0);
    }
    if (tile + 1 < tiles) {
      wait_copies<0>();
      sync_block();
    }
  }
  state.add_lanes();
  if constexpr (kParts) {
    store_part<P, M>(args, state, (blockIdx.z * int64_t{shape.rows} + row) * shape.heads + head, first_query);
    return;
  }
  state.divide();
  store_rows<P>(state.out, shared.q, warp_row, args.out.at(row, query0, head), args.out.token_stride,
                queries);
  if (args.log_sum_exp == nullptr || lane % 4 != 0) return;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + m * 16 + half * 8 + lane / 4;
      if (query < shape.queries)
        args.log_sum_exp[shape.lse_at(row, head) + query] =
            state.max[m][half] * shape.scale + fast_log(state.sum[m][half]);
    }
}

inline constexpr int kJoinWarps = 4;

// The parts of one row, head and query joined: a warp each. Bytes: 4 P + 8 a part, 2 P + 4.
template <int P>
__global__ void __launch_bounds__(kJoinWarps* kWarp) attention_join(const ForwardArgs args, int parts) {
  const AttentionShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t lines = int64_t{shape.rows} * shape.heads * shape.queries;
  const int64_t line = int64_t{blockIdx.x} * kJoinWarps + threadIdx.x / kWarp;
  if (line >= lines) return;
  float max = -INFINITY, sum = 0;
  for (int part = 0; part < parts; ++part) max = fmaxf(max, args.part_statistics[part * lines + line].x);
  for (int part = 0; part < parts; ++part) {
    const float2 statistics = args.part_statistics[part * lines + line];
    sum += fast_exp2(statistics.x - max) * statistics.y;
  }
  const int query = static_cast<int>(line % shape.queries);
  const int head = static_cast<int>(line / shape.queries % shape.heads);
  const int row = static_cast<int>(line / shape.queries / shape.heads);
  for (int i = lane; i < P; i += kWarp) {
    float out = 0;
    for (int part = 0; part < parts; ++part)
      out += fast_exp2(args.part_statistics[part * lines + line].x - max) *
             args.part_out[(part * lines + line) * P + i];
    args.out.at(row, query, head)[i] = to_bf16(out / sum);
  }
  if (args.log_sum_exp != nullptr && lane == 0)
    args.log_sum_exp[shape.lse_at(row, head) + query] = (max + fast_log2(sum)) * 0.6931471805599453f;
}

template <int P, int kWarps, int M, int kKeys, bool kParts, template <int, int> class Queries>
void launch(Stream& stream, const ForwardArgs& args, int parts) {
  constexpr int kQueries = kWarps * 16 * M;
  const AttentionShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(shape.rows * shape.heads),
                  static_cast<unsigned>((shape.queries + kQueries - 1) / kQueries),
                  static_cast<unsigned>(parts));
  const LaunchShape launch_shape{grid, dim3(kWarps * kWarp), sizeof(ForwardShared<P, kQueries, kKeys>)};
  TRANSXSSM_LAUNCH(attention_forward<P, kWarps, M, kKeys, kParts, Queries>, launch_shape, queue_of(stream),
                   args);
}

// Decoding: few queries, many keys. Their parts go to blocks of their own, until two for each multiprocessor
// of a large GPU are there, or a part is as short as four tiles.
inline constexpr int kWantedBlocks = 264, kPartQueries = 64, kPartKeys = 64, kFewestTiles = 4;

int parts_of(const AttentionShape& shape) {
  if (shape.queries > kPartQueries) return 1;
  const int tiles = (shape.queries + shape.offset + kPartKeys - 1) / kPartKeys;
  const int blocks = shape.rows * shape.heads;
  return std::clamp((kWantedBlocks + blocks - 1) / blocks, 1, std::max(1, tiles / kFewestTiles));
}

template <int P, int kWarps, int M, template <int, int> class Queries = RowFragments>
void launch_forward(Stream& stream, ForwardArgs& args) {
  const int parts = parts_of(args.shape);
  if (parts == 1) return launch<P, kWarps, M, 64, false, Queries>(stream, args, 1);
  const int64_t lines = int64_t{args.shape.rows} * args.shape.heads * args.shape.queries;
  Tensor out, statistics;
  const auto carve = [&](Carver carver) {
    out = carver.take(DType::f32, {parts, lines, P});
    statistics = carver.take(DType::f32, {parts, lines, 2});
    return carver.used();
  };
  Scratch scratch(stream, carve(Carver()));
  carve(scratch.carver());
  args.part_out = out.data<float>();
  args.part_statistics = static_cast<float2*>(statistics.raw());
  launch<P, kPartQueries / 16, 1, kPartKeys, true, RowFragments>(stream, args, parts);
  const LaunchShape join{dim3(static_cast<unsigned>((lines + kJoinWarps - 1) / kJoinWarps)),
                         dim3(kJoinWarps * kWarp)};
  TRANSXSSM_LAUNCH(attention_join<P>, join, queue_of(stream), args, parts);
}

}  // namespace

void run_flash(Stream& stream, const AttentionForward& args) {
  check_attention(args);
  ForwardArgs forward{AttentionShape(args), HeadsView(args.q),   HeadsView(args.k),
                      HeadsView(args.v),    HeadsView(args.out), args.log_sum_exp.data<float>()};
  switch (args.q.size(3)) {
    case 16:
      return launch_forward<16, 4, 2>(stream, forward);
    case 32:
      return launch_forward<32, 4, 2>(stream, forward);
    case 64:
      return launch_forward<64, 4, 2, RowsInMemory>(stream, forward);
    default:
      return launch_forward<128, 8, 1>(stream, forward);
  }
}

}  // namespace transxssm::cuda
