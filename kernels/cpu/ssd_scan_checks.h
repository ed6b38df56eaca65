// Shapes and dtypes the scan's structs promise.
#pragma once

#include "kernels/cpu/rows.h"
#include "kernels/ssd_scan.h"

namespace transxssm::cpu {

// An internal error unless every tensor of `in` has its shape, and unit stride where the scan relies on it.
inline void check_ssd_input(const SsdInput& in) {
  expect_activation(in.x, "SsdInput.x");
  const DType dtype = in.x.dtype(), real = arithmetic_dtype(dtype);
  TRANSXSSM_CHECK(in.x.rank() == 4 && in.b.rank() == 4, "SsdInput.x and b must be of rank 4");
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), head_dim = in.x.size(3);
  const int64_t groups = in.b.size(2), state_dim = in.b.size(3);
  TRANSXSSM_CHECK(in.chunk > 0, "SsdInput.chunk is {}", in.chunk);
  TRANSXSSM_CHECK(groups > 0 && heads % groups == 0, "{} groups do not divide {} heads", groups, heads);
  TRANSXSSM_CHECK(head_dim % 8 == 0 && state_dim % 8 == 0, "P {} and N {} must be multiples of 8", head_dim,
                  state_dim);
  expect(in.x, "SsdInput.x", dtype, {rows, tokens, heads, head_dim});
  expect(in.b, "SsdInput.b", dtype, {rows, tokens, groups, state_dim});
  expect(in.c, "SsdInput.c", dtype, {rows, tokens, groups, state_dim});
  TRANSXSSM_CHECK(in.u.dtype() == real && in.u.shape() == (Shape{rows, tokens, heads}), "SsdInput.u is {} {}",
                  dtype_name(in.u.dtype()), in.u.shape().to_string());
  expect(in.dt_bias, "SsdInput.dt_bias", real, {heads});
  expect(in.a_log, "SsdInput.a_log", real, {heads});
  expect_or_empty(in.d_skip, "SsdInput.d_skip", real, {heads});
  TRANSXSSM_CHECK(in.cos.empty() == in.sin.empty(), "SsdInput.cos and sin come together");
  if (in.cos) {
    TRANSXSSM_CHECK(in.cos.size(0) > std::min(in.chunk, tokens), "SsdInput.cos has {} rows, chunk {}",
                    in.cos.size(0), in.chunk);
    expect(in.cos, "SsdInput.cos", real, {in.cos.size(0), state_dim / 2});
    expect(in.sin, "SsdInput.sin", real, {in.cos.size(0), state_dim / 2});
  }
  expect_or_empty(in.c_scale, "SsdInput.c_scale", real, {rows, tokens});
  expect_or_empty(in.start, "SsdInput.start", DType::u8, {rows, tokens});
}

// A state [..,P,N] with P and N contiguous, or empty.
inline void check_ssd_state(const Tensor& state, const char* name, DType dtype, const Shape& shape) {
  expect_or_empty(state, name, dtype, shape);
  const int rank = shape.rank();
  TRANSXSSM_CHECK(!state || state.stride(rank - 2) == shape[rank - 1], "{}: [P,N] is not contiguous", name);
}

// The states that enter the chunks; beside bf16 activations they may be bf16 too.
inline void check_chunk_states(const Tensor& states, const char* name, const SsdInput& in) {
  const DType dtype = in.x.dtype() == DType::bf16 && states.dtype() == DType::bf16
                          ? DType::bf16
                          : arithmetic_dtype(in.x.dtype());
  check_ssd_state(
      states, name, dtype,
      {in.x.size(0), ssd_num_chunks(in.x.size(1), in.chunk), in.x.size(2), in.x.size(3), in.b.size(3)});
}

}  // namespace transxssm::cpu
