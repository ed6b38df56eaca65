#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class D>
HWY_INLINE auto load_f64(D d, const double* x) {
  return hn::LoadU(d, x);
}
template <class D>
HWY_INLINE auto load_f64(D d, const float* x) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), x));
}

template <class T>
double squares(const T* x, int64_t count) {
  return sum_lanes<double>(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = load_f64(d, x + i);
    return hn::Mul(v, v);
  });
}

template <class T>
double not_finite(const T* x, int64_t count) {
  // x - x is zero, or NaN for NaN and infinities. The count of a block is exact in T.
  return static_cast<double>(sum_lanes<T>(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, x + i);
    return hn::IfThenElseZero(hn::IsNaN(hn::Sub(v, v)), hn::Set(d, 1));
  }));
}

double squares_of_block(const Tensor& x, int64_t begin, int64_t count) {
  return x.dtype() == DType::f32 ? squares(x.data<float>() + begin, count)
                                 : squares(x.data<double>() + begin, count);
}
double not_finite_of_block(const Tensor& x, int64_t begin, int64_t count) {
  return x.dtype() == DType::f32 ? not_finite(x.data<float>() + begin, count)
                                 : not_finite(x.data<double>() + begin, count);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(squares_of_block);
HWY_EXPORT(not_finite_of_block);

namespace {

// Sum of block_sum(begin, count) over fixed blocks, in order.
template <class Fn>
double sum_of_blocks(Stream& stream, const Tensor& x, const char* name, Fn&& block_sum) {
  constexpr int64_t kBlock = 8192;
  if (x.num_elements() == 0) return 0;
  expect_float(x, name);
  TRANSXSSM_CHECK(x.is_contiguous(), "{} is not contiguous", name);
  const int64_t count = x.num_elements(), blocks = (count + kBlock - 1) / kBlock;
  Scratch scratch(stream, blocks * static_cast<int64_t>(sizeof(double)));
  double* partials = scratch.data<double>();
  parallel_ranges(stream, blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      partials[block] = block_sum(block * kBlock, std::min(kBlock, count - block * kBlock));
  });
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partials[block];
  return sum;
}

}  // namespace

double sum_of_squares(Stream& stream, std::span<const Tensor> tensors) {
  double sum = 0;
  for (const Tensor& x : tensors)
    sum += sum_of_blocks(stream, x, "sum_of_squares.x", [&](int64_t begin, int64_t count) {
      return HWY_DYNAMIC_DISPATCH(squares_of_block)(x, begin, count);
    });
  return sum;
}

int64_t count_not_finite(Stream& stream, const Tensor& x) {
  return static_cast<int64_t>(
      sum_of_blocks(stream, x, "count_not_finite.x", [&](int64_t begin, int64_t count) {
        return HWY_DYNAMIC_DISPATCH(not_finite_of_block)(x, begin, count);
      }));
}

}  // namespace transxssm::cpu
#endif
