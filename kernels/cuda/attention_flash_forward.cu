// Per block of queries, keys upwards (Dao 2023, "FlashAttention-2"):
//   S = q k^T     m' = max(m, S)     P = exp(scale (S - m'))     l = c l + sum P     O = c O + P v
// with c = exp(scale (m - m')); at the end O / l and scale m + log l.
//
// Work: 4 P products and one exponential a visible pair of query and key. Bytes: q, k, v and out once, and
// k and v again for every further block of queries, mostly from L2.
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

  __device__ void finish() {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[m][half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        sum[m][half] = total;
        const float factor = 1 / total;
#pragma unroll
        for (int n = 0; n < P / 8; ++n) {
          out[m][n][half * 2] *= factor;
          out[m][n][half * 2 + 1] *= factor;
        }
      }
  }
};

template <int P, int kWarps, int M, int kKeys, template <int, int> class Queries>
__global__ void __launch_bounds__(kWarps* kWarp) attention_forward(const ForwardArgs args) {
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
  const int first_tile = shape.first_key_of(row, query0) / kKeys, tiles = (visible + kKeys - 1) / kKeys;

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
    if (key0 <= last_query + shape.offset) {  // some of this warp's queries see the tile
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
  state.finish();
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

template <int P, int kWarps, int M, int kKeys, template <int, int> class Queries = RowFragments>
void launch_forward(Stream& stream, const ForwardArgs& args) {
  constexpr int kQueries = kWarps * 16 * M;
  const AttentionShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(shape.rows * shape.heads),
                  static_cast<unsigned>((shape.queries + kQueries - 1) / kQueries));
  const LaunchShape launch_shape{grid, dim3(kWarps * kWarp), sizeof(ForwardShared<P, kQueries, kKeys>)};
  TRANSXSSM_LAUNCH(attention_forward<P, kWarps, M, kKeys, Queries>, launch_shape, queue_of(stream), args);
}

}  // namespace

void run_flash(Stream& stream, const AttentionForward& args) {
  check_attention(args);
  const ForwardArgs forward{AttentionShape(args), HeadsView(args.q),   HeadsView(args.k),
                            HeadsView(args.v),    HeadsView(args.out), args.log_sum_exp.data<float>()};
  switch (args.q.size(3)) {
    case 16:
      return launch_forward<16, 4, 2, 64>(stream, forward);
    case 32:
      return launch_forward<32, 4, 2, 64>(stream, forward);
    case 64:
      return launch_forward<64, 4, 2, 64, RowsInMemory>(stream, forward);
    default:
      return launch_forward<128, 8, 1, 64>(stream, forward);
  }
}

}  // namespace transxssm::cuda
