// From the saved log of the sums of exponentials L, per block of queries and keys:
//   P = exp(scale q k^T - L)     dP = d_out v^T     dS = P (dP - <d_out, out>)
//   dv += P^T d_out     dk += scale dS^T q     dq += scale dS k
// One pass by blocks of keys sums dv and dk over the heads that share a key head and over queries upwards, in
// the transposed layout: P^T and dS^T then are left operands as they come. One pass by blocks of queries sums
// dq over keys upwards. Neither needs atomics, nor a place for P.
//
// Work: 8 P products and one exponential a visible pair in the first pass, 6 P and one in the second.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_shapes.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/queue.h"

namespace transxssm::cuda {

namespace {

struct BackwardArgs {
  AttentionShape shape;
  HeadsView q, k, v, out, d_out, dq, dk, dv;
  const float* log_sum_exp;  // [B,H,Tq]
  float2* statistics;        // [B,H, statistics_stride]: L log2(e) and <d_out, out>
  int statistics_stride;     // Tq rounded up; behind the last query a row's weights are zero
};

inline constexpr int kStatisticsThreads = 256;

// Per query and head, P / 8 lanes each. Bytes: 4 P + 12.
template <int P>
__global__ void __launch_bounds__(kStatisticsThreads) attention_statistics(const BackwardArgs args) {
  constexpr int kLanes = P / 8;
  const AttentionShape& shape = args.shape;
  const int64_t item = (int64_t{blockIdx.x} * kStatisticsThreads + threadIdx.x) / kLanes;
  const int part = static_cast<int>(threadIdx.x) % kLanes;
  const int head = static_cast<int>(item % shape.heads);
  const int query = static_cast<int>(item / shape.heads % args.statistics_stride);
  const int row = static_cast<int>(item / shape.heads / args.statistics_stride);
  const bool valid = row < shape.rows && query < shape.queries;
  float dot = 0;
  if (valid) {
    float out[8], d_out[8];
    load_vector(args.out.at(row, query, head) + part * 8, out);
    load_vector(args.d_out.at(row, query, head) + part * 8, d_out);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot += out[i] * d_out[i];
  }
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) dot += shuffle_xor(dot, mask);
  if (part != 0 || row >= shape.rows) return;
  const int64_t at = int64_t{row} * shape.heads + head;
  const float scaled =
      valid ? args.log_sum_exp[shape.lse_at(row, head) + query] * 1.4426950408889634f : INFINITY;
  args.statistics[at * args.statistics_stride + query] = make_float2(scaled, dot);
}

template <int P, int kKeys, int kQueries>
struct KeysShared {
  bf16 k[kKeys * P];
  bf16 v[kKeys * P];
  bf16 q[2][kQueries * P];
  bf16 d_out[2][kQueries * P];
  float2 statistics[2][kQueries];
};

// Number of blocks of kQueries queries whose first one sees a key up to `last_key`: those are the first ones.
template <int kQueries>
__device__ int count_query_blocks(const AttentionShape& shape, int row, int last_key) {
  const int blocks = (shape.queries + kQueries - 1) / kQueries;
  if (shape.first_key == nullptr) return blocks;
  int count = 0;
  for (int block = static_cast<int>(threadIdx.x) % kWarp; block < blocks; block += kWarp)
    count += shape.first_key_of(row, block * kQueries) <= last_key ? 1 : 0;
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) count += shuffle_xor(count, mask);
  return count;
}

// dk and dv of a block of keys. Scores are transposed: a row is a key.
template <int P, int kWarps, int M, int kQueries, template <int, int> class Values>
__global__ void __launch_bounds__(kWarps* kWarp) attention_backward_keys(const BackwardArgs args) {
  constexpr int kThreads = kWarps * kWarp, kKeys = kWarps * 16 * M, N = 2;
  const AttentionShape& shape = args.shape;
  auto& shared = shared_memory<KeysShared<P, kKeys, kQueries>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * M;
  const int row = static_cast<int>(blockIdx.x) / shape.key_heads;
  const int key_head = static_cast<int>(blockIdx.x) % shape.key_heads;
  const int key0 = static_cast<int>(blockIdx.y) * kKeys, keys = min(kKeys, shape.keys - key0);
  const int first_key = key0 + warp_row, last_key = first_key + 16 * M - 1;  // of this warp
  const int first_block = max(0, key0 - shape.offset) / kQueries;
  const int end_block = count_query_blocks<kQueries>(shape, row, key0 + keys - 1);
  const int end_head = first_block < end_block ? (key_head + 1) * shape.group : 0;

  float dk[M][P / 8][4], dv[M][P / 8][4];
  clear(dk);
  clear(dv);
  const auto load_queries = [&](int head, int block, int stage) {
    const int query0 = block * kQueries, valid = shape.queries - query0;
    load_tile<kThreads, kQueries, P>(shared.q[stage], args.q.at(row, query0, head), args.q.token_stride,
                                     valid);
    load_tile<kThreads, kQueries, P>(shared.d_out[stage], args.d_out.at(row, query0, head),
                                     args.d_out.token_stride, valid);
    const int64_t at = (int64_t{row} * shape.heads + head) * args.statistics_stride + query0;
    const int i = static_cast<int>(threadIdx.x) * 2;
    if (i < kQueries) copy_async(&shared.statistics[stage][i], args.statistics + at + i);
  };
  RowFragments<P, M> k;
  Values<P, M> v;
  // Over the heads of the group, and in each over the blocks of queries.
  int head = key_head * shape.group, block = first_block, stage = 0;
  if (head < end_head) {
    const int seen = min(keys, shape.queries + shape.offset - key0);
    load_tile<kThreads, kKeys, P>(shared.k, args.k.at(row, key0, key_head), args.k.token_stride, seen);
    load_tile<kThreads, kKeys, P>(shared.v, args.v.at(row, key0, key_head), args.v.token_stride, seen);
    load_queries(head, block, 0);
    commit_copies();
    wait_copies<0>();
    sync_block();
    k.load(shared.k, warp_row);
    v.load(shared.v, warp_row);
  }
  while (head < end_head) {
    const int query0 = block * kQueries;
    if (++block == end_block) ++head, block = first_block;
    if (head < end_head) {
      load_queries(head, block, stage ^ 1);
      commit_copies();
    }
#pragma unroll 1
    for (int slice = 0; slice < kQueries; slice += 8 * N) {
      const int first_query = query0 + slice, last_query = first_query + 8 * N - 1;
      if (last_query + shape.offset < first_key) continue;  // before all of this warp's keys
      const int low = shape.first_key_of(row, last_query);
      float weights[M][N][4], d_scores[M][N][4];
      multiply<P>(weights, k, shared.q[stage], slice);
      multiply<P>(d_scores, v, shared.d_out[stage], slice);
      if (last_key > first_query + shape.offset || low > first_key)
        hide_unseen_transposed(weights, shape, row, first_query, first_key);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint4 two = load_16_bytes(&shared.statistics[stage][slice + n * 8 + lane % 4 * 2]);
        const float lse[2] = {bits_to_float(two.x), bits_to_float(two.z)};
        const float dot[2] = {bits_to_float(two.y), bits_to_float(two.w)};
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float weight = fast_exp2(weights[m][n][i] * shape.scale_log2 - lse[i % 2]);
            weights[m][n][i] = weight;
            d_scores[m][n][i] = weight * (d_scores[m][n][i] - dot[i % 2]);
          }
      }
      accumulate<P>(dv, weights, shared.d_out[stage], slice);
      accumulate<P>(dk, d_scores, shared.q[stage], slice);
    }
    if (head < end_head) {
      wait_copies<0>();
      sync_block();
    }
    stage ^= 1;
  }
  scale_all(dk, shape.scale);
  store_rows<P>(dk, shared.k, warp_row, args.dk.at(row, key0, key_head), args.dk.token_stride, keys);
  store_rows<P>(dv, shared.v, warp_row, args.dv.at(row, key0, key_head), args.dv.token_stride, keys);
}

template <int P, int kQueries, int kKeys>
struct QueriesShared {
  bf16 q[kQueries * P];
  bf16 d_out[kQueries * P];
  bf16 k[2][kKeys * P];
  bf16 v[2][kKeys * P];
};

// dq of a block of queries.
template <int P, int kWarps, int M, int kKeys>
__global__ void __launch_bounds__(kWarps* kWarp) attention_backward_queries(const BackwardArgs args) {
  constexpr int kThreads = kWarps * kWarp, kQueries = kWarps * 16 * M, N = 2;
  const AttentionShape& shape = args.shape;
  auto& shared = shared_memory<QueriesShared<P, kQueries, kKeys>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * M;
  const int row = static_cast<int>(blockIdx.x) / shape.heads,
            head = static_cast<int>(blockIdx.x) % shape.heads;
  const int key_head = head / shape.group;
  const int query0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;  // the longest work first
  const int queries = min(kQueries, shape.queries - query0);
  const int visible = query0 + queries + shape.offset;
  const int first_tile = shape.first_key_of(row, query0) / kKeys, tiles = (visible + kKeys - 1) / kKeys;

  const auto load_keys = [&](int tile) {
    const int key0 = tile * kKeys, stage = tile % 2, valid = visible - key0;
    load_tile<kThreads, kKeys, P>(shared.k[stage], args.k.at(row, key0, key_head), args.k.token_stride,
                                  valid);
    load_tile<kThreads, kKeys, P>(shared.v[stage], args.v.at(row, key0, key_head), args.v.token_stride,
                                  valid);
  };
  load_tile<kThreads, kQueries, P>(shared.q, args.q.at(row, query0, head), args.q.token_stride, queries);
  load_tile<kThreads, kQueries, P>(shared.d_out, args.d_out.at(row, query0, head), args.d_out.token_stride,
                                   queries);
  load_keys(first_tile);
  commit_copies();
  wait_copies<0>();
  sync_block();
  RowFragments<P, M> q, d_out;
  q.load(shared.q, warp_row);
  d_out.load(shared.d_out, warp_row);

  const int first_query = query0 + warp_row, last_query = min(first_query + 16 * M, shape.queries) - 1;
  const int last_first_key = shape.first_key_of(row, last_query);
  float2 statistics[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = min(first_query + m * 16 + half * 8 + lane / 4, shape.queries - 1);
      statistics[m][half] =
          args.statistics[(int64_t{row} * shape.heads + head) * args.statistics_stride + query];
    }
  float dq[M][P / 8][4];
  clear(dq);
  for (int tile = first_tile; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      load_keys(tile + 1);
      commit_copies();
    }
    const int stage = tile % 2;
#pragma unroll 1
    for (int slice = 0; slice < kKeys; slice += 8 * N) {
      const int first_key = tile * kKeys + slice;
      if (first_key > last_query + shape.offset) break;
      float weights[M][N][4], d_scores[M][N][4];
      multiply<P>(weights, q, shared.k[stage], slice);
      multiply<P>(d_scores, d_out, shared.v[stage], slice);
      if (first_key + 8 * N - 1 > first_query + shape.offset || last_first_key > first_key)
        hide_unseen(weights, shape, row, first_query, first_key);
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 statistic = statistics[m][i / 2];
            const float weight = fast_exp2(weights[m][n][i] * shape.scale_log2 - statistic.x);
            d_scores[m][n][i] = weight * (d_scores[m][n][i] - statistic.y);
          }
      accumulate<P>(dq, d_scores, shared.k[stage], slice);
    }
    if (tile + 1 < tiles) {
      wait_copies<0>();
      sync_block();
    }
  }
  scale_all(dq, shape.scale);
  store_rows<P>(dq, shared.q, warp_row, args.dq.at(row, query0, head), args.dq.token_stride, queries);
}

inline constexpr int kStatisticsGrain = 64;  // of queries: whole blocks of either pass

template <int P, int kWarps, int M, int kTile, template <int, int> class Values = RowFragments>
void launch_backward(Stream& stream, const BackwardArgs& args) {
  static_assert(kStatisticsGrain % kTile == 0);
  constexpr int kBlock = kWarps * 16 * M;
  const AttentionShape& shape = args.shape;
  const auto blocks = [](int64_t items, int64_t size) {
    return static_cast<unsigned>((items + size - 1) / size);
  };
  const cudaStream_t queue = queue_of(stream);
  const int64_t items = int64_t{shape.rows} * args.statistics_stride * shape.heads;
  const LaunchShape statistics{blocks(items * (P / 8), kStatisticsThreads), kStatisticsThreads};
  TRANSXSSM_LAUNCH(attention_statistics<P>, statistics, queue, args);
  const LaunchShape keys{
      dim3(static_cast<unsigned>(shape.rows * shape.key_heads), blocks(shape.keys, kBlock)), kWarps * kWarp,
      sizeof(KeysShared<P, kBlock, kTile>)};
  TRANSXSSM_LAUNCH(attention_backward_keys<P, kWarps, M, kTile, Values>, keys, queue, args);
  const LaunchShape queries{
      dim3(static_cast<unsigned>(shape.rows * shape.heads), blocks(shape.queries, kBlock)), kWarps * kWarp,
      sizeof(QueriesShared<P, kBlock, kTile>)};
  TRANSXSSM_LAUNCH(attention_backward_queries<P, kWarps, M, kTile>, queries, queue, args);
}

}  // namespace

void run_flash(Stream& stream, const AttentionBackward& args) {
  check_attention(args);
  const AttentionShape shape(args);
  const int stride = (shape.queries + kStatisticsGrain - 1) / kStatisticsGrain * kStatisticsGrain;
  Scratch scratch(stream, int64_t{shape.rows} * shape.heads * stride * static_cast<int64_t>(sizeof(float2)));
  const BackwardArgs backward{shape,
                              HeadsView(args.q),
                              HeadsView(args.k),
                              HeadsView(args.v),
                              HeadsView(args.out),
                              HeadsView(args.d_out),
                              HeadsView(args.dq),
                              HeadsView(args.dk),
                              HeadsView(args.dv),
                              args.log_sum_exp.data<float>(),
                              reinterpret_cast<float2*>(scratch.data<float>()),
                              stride};
  switch (args.q.size(3)) {
    case 16:
      return launch_backward<16, 4, 2, 64>(stream, backward);
    case 32:
      return launch_backward<32, 4, 2, 64>(stream, backward);
    case 64:
      return launch_backward<64, 4, 2, 64, RowsInMemory>(stream, backward);
    default:
      return launch_backward<128, 8, 1, 32>(stream, backward);
  }
}

}  // namespace transxssm::cuda
