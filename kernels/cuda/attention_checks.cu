#include <initializer_list>
#include <limits>

#include "kernels/cuda/attention_flash.h"

namespace transxssm::cuda {

namespace {

void expect(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) {
  TRANSXSSM_CHECK(tensor, "Attention.{} is missing", name);
  TRANSXSSM_CHECK(tensor.dtype() == dtype && tensor.shape() == shape, "Attention.{} is {} {}, not {} {}",
                  name, dtype_name(tensor.dtype()), tensor.shape().to_string(), dtype_name(dtype),
                  shape.to_string());
  TRANSXSSM_CHECK(tensor.stride(shape.rank() - 1) == 1, "Attention.{} has stride {} in its last dim", name,
                  tensor.stride(shape.rank() - 1));
}

// [B,T,H,P] bf16 whose rows of P start at multiples of 16 bytes.
void expect_heads(const Tensor& tensor, const char* name, const Shape& shape) {
  expect(tensor, name, DType::bf16, shape);
  bool aligned = reinterpret_cast<uintptr_t>(tensor.raw()) % 16 == 0;
  for (int dim = 0; dim < 3; ++dim) aligned = aligned && (shape[dim] == 1 || tensor.stride(dim) % 8 == 0);
  TRANSXSSM_CHECK(aligned, "Attention.{}: its rows must start at multiples of 16 bytes", name);
}

template <class Args>
void check_shared(const Args& args) {
  const Tensor& q = args.q;
  TRANSXSSM_CHECK(q.rank() == 4 && args.k.rank() == 4, "Attention.q and k must be of rank 4");
  if (q.dtype() != DType::bf16)
    throw UsageError("attention on a GPU computes in bf16, not {}: set the dtype bf16, or the device cpu",
                     dtype_name(q.dtype()));
  const int64_t rows = q.size(0), queries = q.size(1), heads = q.size(2), p = q.size(3);
  if (p != 16 && p != 32 && p != 64 && p != 128)
    throw UsageError(
        "attention on a GPU takes heads of 16, 32, 64 or 128, not {}: change head_dim, or set "
        "the device cpu",
        p);
  const int64_t keys = args.k.size(1), key_heads = args.k.size(2);
  TRANSXSSM_CHECK(rows > 0 && queries > 0 && key_heads > 0 && heads % key_heads == 0,
                  "{} key heads do not divide {} heads", key_heads, heads);
  TRANSXSSM_CHECK(args.query_offset >= 0 && queries + args.query_offset <= keys,
                  "{} queries from {} need more than {} keys", queries, args.query_offset, keys);
  TRANSXSSM_CHECK(keys < std::numeric_limits<int32_t>::max() / 2 && args.scale > 0, "{} keys, scale {}", keys,
                  args.scale);
  expect_heads(q, "q", {rows, queries, heads, p});
  expect_heads(args.k, "k", {rows, keys, key_heads, p});
  expect_heads(args.v, "v", {rows, keys, key_heads, p});
  expect_heads(args.out, "out", q.shape());
  if (args.first_key) expect(args.first_key, "first_key", DType::i32, {rows, queries});
  if (args.log_sum_exp) expect(args.log_sum_exp, "log_sum_exp", DType::f32, {rows, heads, queries});
}

}  // namespace

void check_attention(const AttentionForward& args) {
  check_shared(args);
}

void check_attention(const AttentionBackward& args) {
  check_shared(args);
  TRANSXSSM_CHECK(args.log_sum_exp, "Attention.log_sum_exp is missing");
  expect_heads(args.d_out, "d_out", args.q.shape());
  expect_heads(args.dq, "dq", args.q.shape());
  expect_heads(args.dk, "dk", args.k.shape());
  expect_heads(args.dv, "dv", args.k.shape());
}

}  // namespace transxssm::cuda
