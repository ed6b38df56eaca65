#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

// Floor, bytes an element: a row of the table read, y written: 4 in bf16.
template <class W, class Y, int N>
__global__ void __launch_bounds__(kRowThreads)
    embedding_forward(RowGrid grid, const int32_t* ids, int64_t first_id, int64_t vocabulary,
                      Rows<const W> table, Rows<Y> ys) {
  const RowPlace at = row_place<N>(grid);
  if (!at.inside) return;
  const int64_t id = ids[at.row] - first_id;
  float y[N] = {};
  if (id >= 0 && id < vocabulary) load<N>(table[id] + at.column, y);
  store<N>(ys[at.row] + at.column, y);
}

// The exponent of a power of two, which a float holds exactly.
__device__ inline int power_of_two(uint32_t x) {
  return static_cast<int>(float_to_bits(static_cast<float>(x)) >> 23) - 127;
}

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Votes on neighbouring stretches of tokens are kept in turn, so that one barrier a stretch is enough.
struct BackwardShared {
  uint32_t votes[2][kWarps];
};

// The block of a token that is the first of its id, among all tokens, adds the rows of that id, in the order
// of tokens: no atomics, no order of their own. Others end at the nearest earlier token of their id.
// Floor, bytes an element: dy read, d_weight of the ids that occur read and written: 2 in bf16 and 8 for each
// distinct id. The tokens read by every block are few bytes, from the second-level cache.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_backward(const int32_t* ids, int64_t tokens, int64_t width, int64_t first_id,
                       int64_t vocabulary, Rows<const T> dys, Rows<float> table) {
  constexpr int kAtOnce = 4;  // rows on their way together
  auto& shared = shared_memory<BackwardShared>();
  const int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int32_t id = ids[token];
  const int64_t row = id - first_id;
  if (row < 0 || row >= vocabulary) return;  // the whole block
  int turn = 0;
  const auto vote = [&](int64_t begin, int64_t end) {
    const int64_t t = begin + thread;
    const uint32_t equal = ballot(t >= 0 && t < end && ids[t] == id);
    turn = 1 - turn;
    if (thread % kWarp == 0) shared.votes[turn][warp] = equal;
    sync_block();
  };
  for (int64_t begin = token - kThreads; begin > -kThreads; begin -= kThreads) {
    vote(begin, token);
    uint32_t any = 0;
    for (int w = 0; w < kWarps; ++w) any |= shared.votes[turn][w];
    if (any) return;  // the whole block
  }
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + thread) * N;
  const bool inside = column < width;
  float sum[N] = {};
  if (inside) load<N>(table[row] + column, sum);
  for (int64_t begin = token; begin < tokens; begin += kThreads) {
    vote(begin, tokens);
    int w = 0;
    uint32_t left = shared.votes[turn][0];
    while (true) {
      int found[kAtOnce] = {};  // tokens from `begin`
      int count = 0;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        while (left == 0 && w + 1 < kWarps) left = shared.votes[turn][++w];
        if (left == 0) break;
        const uint32_t lowest = left & (~left + 1);
        found[k] = w * kWarp + power_of_two(lowest);
        left ^= lowest;
        count = k + 1;
      }
      if (count == 0) break;
      if (!inside) continue;
      float dy[kAtOnce][N];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (k < count) load<N>(dys[begin + found[k]] + column, dy[k]);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (k < count) {
#pragma unroll
          for (int i = 0; i < N; ++i) sum[i] += dy[k][i];
        }
    }
  }
  if (inside) store<N>(table[row] + column, sum);
}

}  // namespace

void run(Stream& stream, const EmbeddingForward& args) {
  const int64_t tokens = args.y.size(0), width = args.y.size(1), vocabulary = args.weight.size(0);
  expect(args.ids, "EmbeddingForward.ids", DType::i32, {tokens});
  expect(args.weight, "EmbeddingForward.weight", args.weight.dtype(), {vocabulary, width});
  expect(args.y, "EmbeddingForward.y", args.y.dtype(), {tokens, width});
  if (args.y.num_elements() == 0) return;
  with_activation(args.weight, "EmbeddingForward.weight", [&](auto w) {
    with_activation(args.y, "EmbeddingForward.y", [&](auto y) {
      using W = decltype(w);
      using Y = decltype(y);
      with_vector<kVector<W, Y>>(in_vectors(width, kVector<W, Y>, {args.weight, args.y}), [&](auto count) {
        constexpr int N = decltype(count)::value;
        const RowGrid grid = make_row_grid(tokens, width, N);
        TRANSXSSM_LAUNCH(embedding_forward<W, Y, N>, launch_shape(grid), queue_of(stream), grid,
                         data_of<const int32_t>(args.ids), args.first_id, vocabulary,
                         rows_of<const W>(args.weight), rows_of<Y>(args.y));
      });
    });
  });
}

void run(Stream& stream, const EmbeddingBackward& args) {
  const int64_t tokens = args.dy.size(0), width = args.dy.size(1), vocabulary = args.d_weight.size(0);
  expect(args.ids, "EmbeddingBackward.ids", DType::i32, {tokens});
  expect(args.dy, "EmbeddingBackward.dy", args.dy.dtype(), {tokens, width});
  expect(args.d_weight, "EmbeddingBackward.d_weight", DType::f32, {vocabulary, width});
  if (args.dy.num_elements() == 0 || vocabulary == 0) return;
  with_activation(args.dy, "EmbeddingBackward.dy", [&](auto type) {
    using T = decltype(type);
    with_vector<kVector<T>>(in_vectors(width, kVector<T>, {args.dy, args.d_weight}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      const int64_t columns = int64_t{kThreads} * N;
      TRANSXSSM_LAUNCH(embedding_backward<T, N>,
                       (LaunchShape{.grid = dim3(static_cast<unsigned>(tokens),
                                                 static_cast<unsigned>((width + columns - 1) / columns)),
                                    .block = dim3(kThreads),
                                    .shared_bytes = sizeof(BackwardShared)}),
                       queue_of(stream), data_of<const int32_t>(args.ids), tokens, width, args.first_id,
                       vocabulary, rows_of<const T>(args.dy), rows_of<float>(args.d_weight));
    });
  });
}

}  // namespace transxssm::cuda
