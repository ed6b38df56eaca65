#include <cmath>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace transxssm::cuda {

namespace {

constexpr int kThreads = 256;

struct Update {
  int64_t count;
  float* weight;
  const float* gradient;
  float *exp_avg, *exp_avg_sq;
  bf16* rounded;  // or null
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, decay,
      eps;
};

// N elements, or the fewer that are left, singly.
template <int N, class T>
__device__ inline void load_some(const T* p, int64_t left, float (&values)[N]) {
  if (left >= N) return load<N>(p, values);
  for (int i = 0; i < N; ++i) values[i] = i < left ? to_float(p[i]) : 0.0f;
}
template <int N, class T>
__device__ inline void store_some(T* p, int64_t left, const float (&values)[N]) {
  if (left >= N) return store<N>(p, values);
  for (int i = 0; i < N; ++i)
    if (i < left) p[i] = from_float<T>(values[i]);
}

// Floor, bytes a parameter: weight, gradient and both averages read, all but the gradient written: 28; 30
// with the rounded weights.
template <int N>
__global__ void __launch_bounds__(kThreads) adamw(Update args) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  const int64_t left = args.count - begin;
  if (left <= 0) return;
  float w[N], g[N], m[N], v[N];
  load_some<N>(args.gradient + begin, left, g);
  load_some<N>(args.exp_avg + begin, left, m);
  load_some<N>(args.exp_avg_sq + begin, left, v);
  load_some<N>(args.weight + begin, left, w);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    g[i] *= args.gradient_scale;
    m[i] = fmaf(args.beta1, m[i], args.one_minus_beta1 * g[i]);
    v[i] = fmaf(args.beta2, v[i], args.one_minus_beta2 * g[i] * g[i]);
    const float divisor = fmaf(sqrtf(v[i]), args.root_correction, args.eps);
    // The decay joins the update, not the weight: 1 - lr * decay would lose most of its digits in f32.
    w[i] -= fmaf(args.decay, w[i], args.step_size * m[i] / divisor);
  }
  store_some<N>(args.exp_avg + begin, left, m);
  store_some<N>(args.exp_avg_sq + begin, left, v);
  store_some<N>(args.weight + begin, left, w);
  if (args.rounded) store_some<N>(args.rounded + begin, left, w);
}

}  // namespace

void run(Stream& stream, const AdamW& args) {
  const Shape count{args.weight.size(0)};
  expect(args.weight, "AdamW.weight", DType::f32, count);
  expect(args.gradient, "AdamW.gradient", DType::f32, count);
  expect(args.exp_avg, "AdamW.exp_avg", DType::f32, count);
  expect(args.exp_avg_sq, "AdamW.exp_avg_sq", DType::f32, count);
  expect_or_empty(args.rounded, "AdamW.rounded", DType::bf16, count);
  TRANSXSSM_CHECK(args.step >= 1, "AdamW.step is {}, but the first step is 1", args.step);
  if (count[0] == 0) return;
  const auto step = static_cast<double>(args.step);
  const Update update{
      .count = count[0],
      .weight = data_of<float>(args.weight),
      .gradient = data_of<const float>(args.gradient),
      .exp_avg = data_of<float>(args.exp_avg),
      .exp_avg_sq = data_of<float>(args.exp_avg_sq),
      .rounded = data_of<bf16>(args.rounded),
      .gradient_scale = static_cast<float>(args.gradient_scale),
      .beta1 = static_cast<float>(args.beta1),
      .one_minus_beta1 = static_cast<float>(1 - args.beta1),
      .beta2 = static_cast<float>(args.beta2),
      .one_minus_beta2 = static_cast<float>(1 - args.beta2),
      .step_size = static_cast<float>(args.learning_rate / (1 - std::pow(args.beta1, step))),
      .root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step))),
      .decay = static_cast<float>(args.learning_rate * args.weight_decay),
      .eps = static_cast<float>(args.eps),
  };
  constexpr int kCount = kVector<float, bf16>;
  const bool vectors =
      in_vectors(kCount, kCount, {args.weight, args.gradient, args.exp_avg, args.exp_avg_sq, args.rounded});
  with_vector<kCount>(vectors, [&](auto chosen) {
    constexpr int N = decltype(chosen)::value;
    constexpr int64_t kElements = int64_t{kThreads} * N;
    const auto blocks = static_cast<unsigned>((count[0] + kElements - 1) / kElements);
    TRANSXSSM_LAUNCH(adamw<N>, (LaunchShape{.grid = dim3(blocks), .block = dim3(kThreads)}), queue_of(stream),
                     update);
  });
}

}  // namespace transxssm::cuda
