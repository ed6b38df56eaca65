#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
struct Rotation {
  T* x;
  int64_t token_stride, head_stride, tokens, positions;
  int half, items, tokens_of_block;  // items: vectors of first halves of one token
  Rows<const float> cos, sin;
  const int32_t* position;
  const float* scale;  // or null
  float sign;
};

// A thread has N pairs of a head. A position outside the tables gives NaN, which stops training at the next
// loss. Floor, bytes an element: read and written: 4 in bf16; the tables stay in the second-level cache.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rotary(Rotation<T> args) {
  const int vectors = args.half / N;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * args.tokens_of_block;
  const int tokens = static_cast<int>(min(static_cast<int64_t>(args.tokens_of_block), args.tokens - begin));
  for (int i = static_cast<int>(threadIdx.x); i < tokens * args.items; i += kThreads) {
    const int64_t t = begin + i / args.items;
    const int item = i % args.items, j = item % vectors * N;
    T* x = args.x + t * args.token_stride + item / vectors * args.head_stride + j;
    const int64_t position = args.position[t];
    const float scale = args.scale ? args.scale[t] : 1.0f;
    float first[N], second[N], cos[N], sin[N];
    load<N>(x, first);
    load<N>(x + args.half, second);
    if (position >= 0 && position < args.positions) {
      load<N>(args.cos[position] + j, cos);
      load<N>(args.sin[position] + j, sin);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) cos[k] = sin[k] = bits_to_float(0x7fc00000u);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float c = cos[k] * scale, s = sin[k] * (args.sign * scale), a = first[k], b = second[k];
      first[k] = fmaf(-b, s, a * c);
      second[k] = fmaf(a, s, b * c);
    }
    store<N>(x, first);
    store<N>(x + args.half, second);
  }
}

}  // namespace

void run(Stream& stream, const Rotary& args) {
  const int64_t tokens = args.x.size(0), heads = args.x.size(1), width = args.x.size(2);
  const int64_t positions = args.cos.size(0), half = width / 2;
  expect(args.x, "Rotary.x", args.x.dtype(), {tokens, heads, width});
  TRANSXSSM_CHECK(width % 2 == 0, "Rotary.x has odd width {}", width);
  TRANSXSSM_CHECK(heads * width < (int64_t{1} << 24), "Rotary.x has {} heads of width {}", heads, width);
  expect(args.cos, "Rotary.cos", DType::f32, {positions, half});
  expect(args.sin, "Rotary.sin", DType::f32, {positions, half});
  expect(args.position, "Rotary.position", DType::i32, {tokens});
  expect_or_empty(args.scale, "Rotary.scale", DType::f32, {tokens});
  if (args.x.num_elements() == 0) return;
  with_activation(args.x, "Rotary.x", [&](auto type) {
    using T = decltype(type);
    with_vector<kVector<T>>(in_vectors(half, kVector<T>, {args.x, args.cos, args.sin}), [&](auto count) {
      constexpr int N = decltype(count)::value;
      const auto items = static_cast<int>(heads * half / N);
      const int tokens_of_block = std::max(1, kThreads / items);
      const Rotation<T> rotation{.x = data_of<T>(args.x),
                                 .token_stride = args.x.stride(0),
                                 .head_stride = args.x.stride(1),
                                 .tokens = tokens,
                                 .positions = positions,
                                 .half = static_cast<int>(half),
                                 .items = items,
                                 .tokens_of_block = tokens_of_block,
                                 .cos = rows_of<const float>(args.cos),
                                 .sin = rows_of<const float>(args.sin),
                                 .position = data_of<const int32_t>(args.position),
                                 .scale = data_of<const float>(args.scale),
                                 .sign = args.direction == RotaryDirection::forward ? 1.0f : -1.0f};
      const int64_t blocks = (tokens + tokens_of_block - 1) / tokens_of_block;
      TRANSXSSM_LAUNCH(rotary<T, N>,
                       (LaunchShape{.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)}),
                       queue_of(stream), rotation);
    });
  });
}

}  // namespace transxssm::cuda
