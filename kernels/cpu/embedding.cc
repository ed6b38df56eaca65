#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class T>
void lookup(const EmbeddingForward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const int64_t width = args.y.size(1);
  const Rows<A> table(args.weight);
  const Rows<T> ys(args.y);
  const int32_t* ids = args.ids.data<int32_t>();
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = ids[t] - args.first_id;
    T* y = ys[t];
    if (row >= 0 && row < args.weight.size(0)) {
      const A* weight = table[row];
      for_lanes<A>(width, [&](auto d, int64_t i) HWY_ATTR { store(load(d, weight + i), d, y + i); });
    } else {
      std::fill_n(y, width, T{});
    }
  }
}

// Columns [begin, end) of every token, in token order: threads share columns, so no two write the same
// element.
template <class T>
void accumulate(const EmbeddingBackward& args, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const Rows<A> table(args.d_weight);
  const Rows<T> dys(args.dy);
  const int32_t* ids = args.ids.data<int32_t>();
  for (int64_t t = 0; t < args.dy.size(0); ++t) {
    const int64_t row = ids[t] - args.first_id;
    if (row < 0 || row >= args.d_weight.size(0)) continue;
    A* total = table[row] + begin;
    const T* dy = dys[t] + begin;
    for_lanes<A>(end - begin, [&](auto d, int64_t i) HWY_ATTR {
      store(hn::Add(load(d, total + i), load(d, dy + i)), d, total + i);
    });
  }
}

void lookup_rows(const EmbeddingForward& args, int64_t begin, int64_t end) {
  with_type(args.y.dtype(), [&](auto type) { lookup<decltype(type)>(args, begin, end); });
}
void accumulate_columns(const EmbeddingBackward& args, int64_t begin, int64_t end) {
  with_type(args.dy.dtype(), [&](auto type) { accumulate<decltype(type)>(args, begin, end); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(lookup_rows);
HWY_EXPORT(accumulate_columns);

void run(Stream& stream, const EmbeddingForward& args) {
  expect_activation(args.y, "EmbeddingForward.y");
  const DType dtype = args.y.dtype();
  const int64_t tokens = args.y.size(0), width = args.y.size(1);
  expect(args.ids, "EmbeddingForward.ids", DType::i32, {tokens});
  expect(args.weight, "EmbeddingForward.weight", arithmetic_dtype(dtype), {args.weight.size(0), width});
  expect(args.y, "EmbeddingForward.y", dtype, {tokens, width});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(lookup_rows)(args, begin, end);
  });
}

void run(Stream& stream, const EmbeddingBackward& args) {
  expect_activation(args.dy, "EmbeddingBackward.dy");
  const DType dtype = args.dy.dtype();
  const int64_t tokens = args.dy.size(0), width = args.dy.size(1);
  expect(args.ids, "EmbeddingBackward.ids", DType::i32, {tokens});
  expect(args.dy, "EmbeddingBackward.dy", dtype, {tokens, width});
  expect(args.d_weight, "EmbeddingBackward.d_weight", arithmetic_dtype(dtype),
         {args.d_weight.size(0), width});
  parallel_ranges(stream, width, std::max<int64_t>(32, row_grain(tokens)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(accumulate_columns)(args, begin, end);
  });
}

}  // namespace transxssm::cpu
#endif
