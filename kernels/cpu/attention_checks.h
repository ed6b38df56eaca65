// Shapes and dtypes that attention's structs promise.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

// An internal error unless the tensors that forward and backward share have their shapes.
template <class Args>
void check_attention(const Args& args) {
  expect_activation(args.q, "Attention.q");
  TRANSXSSM_CHECK(args.q.rank() == 4 && args.k.rank() == 4, "Attention.q and k must be of rank 4");
  const DType dtype = args.q.dtype();
  const int64_t rows = args.q.size(0), queries = args.q.size(1), heads = args.q.size(2), p = args.q.size(3);
  const int64_t keys = args.k.size(1), key_heads = args.k.size(2);
  TRANSXSSM_CHECK(queries > 0 && key_heads > 0 && heads % key_heads == 0,
                  "{} key heads do not divide {} heads", key_heads, heads);
  TRANSXSSM_CHECK(p % 8 == 0 || dtype != DType::bf16, "P {} must be a multiple of 8", p);
  TRANSXSSM_CHECK(args.query_offset >= 0 && queries + args.query_offset <= keys,
                  "{} queries from {} need more than {} keys", queries, args.query_offset, keys);
  expect(args.q, "Attention.q", dtype, {rows, queries, heads, p});
  expect(args.k, "Attention.k", dtype, {rows, keys, key_heads, p});
  expect(args.v, "Attention.v", dtype, {rows, keys, key_heads, p});
  expect_or_empty(args.first_key, "Attention.first_key", DType::i32, {rows, queries});
  expect(args.out, "Attention.out", dtype, args.q.shape());
  expect_or_empty(args.log_sum_exp, "Attention.log_sum_exp", arithmetic_dtype(dtype), {rows, heads, queries});
}

}  // namespace transxssm::cpu
