#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
void update(const AdamW& args, int64_t begin, int64_t end) {
  const auto step = static_cast<double>(args.step);
  const T gradient_scale = static_cast<T>(args.gradient_scale);
  const T beta1 = static_cast<T>(args.beta1), one_minus_beta1 = static_cast<T>(1 - args.beta1);
  const T beta2 = static_cast<T>(args.beta2), one_minus_beta2 = static_cast<T>(1 - args.beta2);
  const T step_size = static_cast<T>(args.learning_rate / (1 - std::pow(args.beta1, step)));
  const T root_correction = static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  const T decay = static_cast<T>(args.learning_rate * args.weight_decay), eps = static_cast<T>(args.eps);
  T* weight = args.weight.data<T>() + begin;
  const T* gradient = args.gradient.data<T>() + begin;
  T* exp_avg = args.exp_avg.data<T>() + begin;
  T* exp_avg_sq = args.exp_avg_sq.data<T>() + begin;
  BFloat16* rounded = args.rounded ? args.rounded.data<BFloat16>() + begin : nullptr;
  for_lanes<T>(end - begin, [&](auto d, int64_t i) HWY_ATTR {
    const auto g = hn::Mul(load(d, gradient + i), hn::Set(d, gradient_scale));
    const auto m =
        hn::MulAdd(hn::Set(d, beta1), load(d, exp_avg + i), hn::Mul(hn::Set(d, one_minus_beta1), g));
    const auto v = hn::MulAdd(hn::Set(d, beta2), load(d, exp_avg_sq + i),
                              hn::Mul(hn::Mul(hn::Set(d, one_minus_beta2), g), g));
    const auto w = load(d, weight + i);
    const auto divisor = hn::MulAdd(hn::Sqrt(v), hn::Set(d, root_correction), hn::Set(d, eps));
    // The decay joins the update, not the weight: 1 - lr * decay would lose most of its digits in f32.
    const auto change = hn::MulAdd(hn::Set(d, decay), w, hn::Div(hn::Mul(hn::Set(d, step_size), m), divisor));
    store(m, d, exp_avg + i);
    store(v, d, exp_avg_sq + i);
    const auto updated = hn::Sub(w, change);
    store(updated, d, weight + i);
    if constexpr (sizeof(T) == 4) {
      if (rounded) store(updated, d, rounded + i);
    }
  });
}

void update_range(const AdamW& args, int64_t begin, int64_t end) {
  args.weight.dtype() == DType::f32 ? update<float>(args, begin, end) : update<double>(args, begin, end);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(update_range);

void run(Stream& stream, const AdamW& args) {
  expect_float(args.weight, "AdamW.weight");
  const DType dtype = args.weight.dtype();
  const int64_t count = args.weight.size(0);
  expect(args.weight, "AdamW.weight", dtype, {count});
  expect(args.gradient, "AdamW.gradient", dtype, {count});
  expect(args.exp_avg, "AdamW.exp_avg", dtype, {count});
  expect(args.exp_avg_sq, "AdamW.exp_avg_sq", dtype, {count});
  expect_or_empty(args.rounded, "AdamW.rounded", DType::bf16, {count});
  TRANSXSSM_CHECK(!args.rounded || dtype == DType::f32, "AdamW.rounded of {} weights", dtype_name(dtype));
  TRANSXSSM_CHECK(args.step >= 1, "AdamW.step is {}, but the first step is 1", args.step);
  // A multiple of every vector length: no element changes between vector and single-lane code with the
  // threads.
  parallel_ranges(stream, count, 8192, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(update_range)(args, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
