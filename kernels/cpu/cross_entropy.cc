#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
HWY_INLINE Arithmetic<T> element(const T* x, int64_t i) {
  return hn::GetLane(load(hn::CappedTag<Arithmetic<T>, 1>(), x + i));
}

// One pass over memory: blocks that stay in cache, each with its maximum and then its sum of exponentials;
// the sum so far is rescaled where the maximum grows (Milakov & Gimelshein 2018). Blocks are added in f64.
template <class T>
void statistics(const CrossEntropyStatistics& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  constexpr int64_t kBlock = 2048;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const int64_t width = args.logits.size(1);
  const Rows<T> rows(args.logits);
  const int32_t* targets = args.targets.data<int32_t>();
  for (int64_t t = begin; t < end; ++t) {
    const T* row = rows[t];
    A max = kLowest;
    double sum = 0;
    for (int64_t b = 0; b < width; b += kBlock) {
      const T* x = row + b;
      const int64_t count = std::min(kBlock, width - b);
      const A larger = max_lanes(x, count, max);
      if (larger > max) sum *= std::exp(static_cast<double>(max) - static_cast<double>(larger));
      max = larger;
      const A shift = max == kLowest ? A{0} : max;  // all logits so far are -inf: -inf - -inf has no value
      sum += static_cast<double>(sum_lanes<A>(count, [&](auto d, int64_t i) HWY_ATTR {
        return exp<T>(d, hn::Sub(load(d, x + i), hn::Set(d, shift)));
      }));
    }
    const int64_t target = targets[t] - args.first_id;
    args.max.data<A>()[t] = max;
    args.sum.data<A>()[t] = static_cast<A>(sum);
    args.target_logit.data<A>()[t] = target >= 0 && target < width ? element(row, target) : A{0};
  }
}

template <class T>
void backward(const CrossEntropyBackward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t width = args.logits.size(1);
  const Rows<T> rows(args.logits);
  const int32_t* targets = args.targets.data<int32_t>();
  const uint8_t* valid = args.valid.data<uint8_t>();
  const double loss_scale = *args.loss_scale.data<double>();
  for (int64_t t = begin; t < end; ++t) {
    T* row = rows[t];
    if (!valid[t]) {
      std::fill_n(row, width, T{});
      continue;
    }
    const A max = args.max.data<A>()[t];
    const A scale = static_cast<A>(loss_scale / static_cast<double>(args.sum.data<A>()[t]));
    const auto probability = [&](auto d, int64_t i) HWY_ATTR {
      return hn::Mul(exp<T>(d, hn::Sub(load(d, row + i), hn::Set(d, max))), hn::Set(d, scale));
    };
    // The target's gradient is rounded once, from the logit that the loop is about to overwrite.
    const hn::CappedTag<A, 1> one;
    const int64_t target = targets[t] - args.first_id;
    const bool here = target >= 0 && target < width;
    const A rest = here ? hn::GetLane(probability(one, target)) - static_cast<A>(loss_scale) : A{0};
    for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR { store(probability(d, i), d, row + i); });
    if (here) store(hn::Set(one, rest), one, row + target);
  }
}

void statistics_rows(const CrossEntropyStatistics& args, DType dtype, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto type) { statistics<decltype(type)>(args, begin, end); });
}
void backward_rows(const CrossEntropyBackward& args, DType dtype, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto type) { backward<decltype(type)>(args, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(statistics_rows);
HWY_EXPORT(backward_rows);

// The number of tokens is taken from `max`: a slice of the vocabulary may have no columns, and then no
// memory and no type.
void run(Stream& stream, const CrossEntropyStatistics& args) {
  expect_float(args.max, "CrossEntropyStatistics.max");
  const DType sums = args.max.dtype(), dtype = args.logits ? args.logits.dtype() : sums;
  TRANSXSSM_CHECK(arithmetic_dtype(dtype) == sums, "logits of {} beside sums of {}", dtype_name(dtype),
                  dtype_name(sums));
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.logits, "CrossEntropyStatistics.logits", dtype, {tokens, width});
  expect(args.targets, "CrossEntropyStatistics.targets", DType::i32, {tokens});
  expect(args.max, "CrossEntropyStatistics.max", sums, {tokens});
  expect(args.sum, "CrossEntropyStatistics.sum", sums, {tokens});
  expect(args.target_logit, "CrossEntropyStatistics.target_logit", sums, {tokens});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(statistics_rows)(args, dtype, begin, end);
  });
}

void run(Stream& stream, const CrossEntropyBackward& args) {
  expect_float(args.max, "CrossEntropyBackward.max");
  const DType sums = args.max.dtype(), dtype = args.logits ? args.logits.dtype() : sums;
  TRANSXSSM_CHECK(arithmetic_dtype(dtype) == sums, "logits of {} beside sums of {}", dtype_name(dtype),
                  dtype_name(sums));
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.logits, "CrossEntropyBackward.logits", dtype, {tokens, width});
  expect(args.targets, "CrossEntropyBackward.targets", DType::i32, {tokens});
  expect(args.valid, "CrossEntropyBackward.valid", DType::u8, {tokens});
  expect(args.max, "CrossEntropyBackward.max", sums, {tokens});
  expect(args.sum, "CrossEntropyBackward.sum", sums, {tokens});
  expect(args.loss_scale, "CrossEntropyBackward.loss_scale", DType::f64, {1});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, dtype, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
