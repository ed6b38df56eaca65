#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

namespace {

template <class T>
void lookup(const EmbeddingForward& args, int64_t begin, int64_t end) {
  const Rows<T> table(args.weight), ys(args.y);
  const int32_t* ids = args.ids.data<int32_t>();
  const auto bytes = static_cast<size_t>(args.y.size(1)) * sizeof(T);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = ids[t] - args.first_id;
    if (row >= 0 && row < args.weight.size(0))
      std::memcpy(ys[t], table[row], bytes);
    else
      std::memset(ys[t], 0, bytes);
  }
}

// Columns [begin, end) of every token, in token order: threads share columns, so no two write the same
// element.
template <class T>
void accumulate(const EmbeddingBackward& args, int64_t begin, int64_t end) {
  const Rows<T> table(args.d_weight), dys(args.dy);
  const int32_t* ids = args.ids.data<int32_t>();
  for (int64_t t = 0; t < args.dy.size(0); ++t) {
    const int64_t row = ids[t] - args.first_id;
    if (row < 0 || row >= args.d_weight.size(0)) continue;
    T* total = table[row];
    const T* dy = dys[t];
    for (int64_t i = begin; i < end; ++i) total[i] += dy[i];
  }
}

}  // namespace

void run(Stream& stream, const EmbeddingForward& args) {
  expect_float(args.y, "EmbeddingForward.y");
  const DType dtype = args.y.dtype();
  const int64_t tokens = args.y.size(0), width = args.y.size(1);
  expect(args.ids, "EmbeddingForward.ids", DType::i32, {tokens});
  expect(args.weight, "EmbeddingForward.weight", dtype, {args.weight.size(0), width});
  expect(args.y, "EmbeddingForward.y", dtype, {tokens, width});
  parallel_ranges(stream, tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    dtype == DType::f32 ? lookup<float>(args, begin, end) : lookup<double>(args, begin, end);
  });
}

void run(Stream& stream, const EmbeddingBackward& args) {
  expect_float(args.dy, "EmbeddingBackward.dy");
  const DType dtype = args.dy.dtype();
  const int64_t tokens = args.dy.size(0), width = args.dy.size(1);
  expect(args.ids, "EmbeddingBackward.ids", DType::i32, {tokens});
  expect(args.dy, "EmbeddingBackward.dy", dtype, {tokens, width});
  expect(args.d_weight, "EmbeddingBackward.d_weight", dtype, {args.d_weight.size(0), width});
  parallel_ranges(stream, width, std::max<int64_t>(32, row_grain(tokens)), [&](int64_t begin, int64_t end) {
    dtype == DType::f32 ? accumulate<float>(args, begin, end) : accumulate<double>(args, begin, end);
  });
}

}  // namespace transxssm::cpu
