#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// One pass over memory: blocks that stay in cache, each with its maximum and then its sum of exponentials;
// the sum so far is rescaled where the maximum grows (Milakov & Gimelshein 2018). Blocks are added in f64.
template <class T>
void statistics(const CrossEntropyStatistics& args, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 2048;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  const int64_t width = args.logits.size(1);
  const Rows<T> rows(args.logits);
  const int32_t* targets = args.targets.data<int32_t>();
  for (int64_t t = begin; t < end; ++t) {
    const T* row = rows[t];
    T max = kLowest;
    double sum = 0;
    for (int64_t b = 0; b < width; b += kBlock) {
      const T* x = row + b;
      const int64_t count = std::min(kBlock, width - b);
      const T larger = max_lanes(x, count, max);
      if (larger > max) sum *= std::exp(static_cast<double>(max) - static_cast<double>(larger));
      max = larger;
      const T shift = max == kLowest ? T{0} : max;  // all logits so far are -inf: -inf - -inf has no value
      sum += static_cast<double>(sum_lanes<T>(count, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = hn::Sub(hn::LoadU(d, x + i), hn::Set(d, shift));
        return hn::IfThenElse(hn::IsNaN(v), v,
                              hn::Exp(d, v));  // hn::Exp of a NaN is zero, which would hide it
      }));
    }
    const int64_t target = targets[t] - args.first_id;
    args.max.data<T>()[t] = max;
    args.sum.data<T>()[t] = static_cast<T>(sum);
    args.target_logit.data<T>()[t] = target >= 0 && target < width ? row[target] : T{0};
  }
}

template <class T>
void backward(const CrossEntropyBackward& args, int64_t begin, int64_t end) {
  const int64_t width = args.logits.size(1);
  const Rows<T> rows(args.logits);
  const int32_t* targets = args.targets.data<int32_t>();
  const uint8_t* valid = args.valid.data<uint8_t>();
  for (int64_t t = begin; t < end; ++t) {
    T* row = rows[t];
    if (!valid[t]) {
      std::fill_n(row, width, T{0});
      continue;
    }
    const T max = args.max.data<T>()[t];
    const T scale = static_cast<T>(args.loss_scale / static_cast<double>(args.sum.data<T>()[t]));
    for_lanes<T>(width, [&](auto d, int64_t i) HWY_ATTR {
      const auto v = hn::Sub(hn::LoadU(d, row + i), hn::Set(d, max));
      hn::StoreU(hn::Mul(hn::Exp(d, v), hn::Set(d, scale)), d, row + i);
    });
    const int64_t target = targets[t] - args.first_id;
    if (target >= 0 && target < width) row[target] -= static_cast<T>(args.loss_scale);
  }
}

void statistics_rows(const CrossEntropyStatistics& args, int64_t begin, int64_t end) {
  args.max.dtype() == DType::f32 ? statistics<float>(args, begin, end) : statistics<double>(args, begin, end);
}
void backward_rows(const CrossEntropyBackward& args, int64_t begin, int64_t end) {
  args.max.dtype() == DType::f32 ? backward<float>(args, begin, end) : backward<double>(args, begin, end);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(statistics_rows);
HWY_EXPORT(backward_rows);

// The number of tokens is taken from `max`: a slice of the vocabulary may have no columns, and then no
// memory.
void run(Stream& stream, const CrossEntropyStatistics& args) {
  expect_float(args.max, "CrossEntropyStatistics.max");
  const DType dtype = args.max.dtype();
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.logits, "CrossEntropyStatistics.logits", dtype, {tokens, width});
  expect(args.targets, "CrossEntropyStatistics.targets", DType::i32, {tokens});
  expect(args.max, "CrossEntropyStatistics.max", dtype, {tokens});
  expect(args.sum, "CrossEntropyStatistics.sum", dtype, {tokens});
  expect(args.target_logit, "CrossEntropyStatistics.target_logit", dtype, {tokens});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(statistics_rows)(args, begin, end);
  });
}

void run(Stream& stream, const CrossEntropyBackward& args) {
  expect_float(args.max, "CrossEntropyBackward.max");
  const DType dtype = args.max.dtype();
  const int64_t tokens = args.max.size(0), width = args.logits.size(1);
  expect(args.logits, "CrossEntropyBackward.logits", dtype, {tokens, width});
  expect(args.targets, "CrossEntropyBackward.targets", DType::i32, {tokens});
  expect(args.valid, "CrossEntropyBackward.valid", DType::u8, {tokens});
  expect(args.max, "CrossEntropyBackward.max", dtype, {tokens});
  expect(args.sum, "CrossEntropyBackward.sum", dtype, {tokens});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(args, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
