// Shapes and dtypes the scan's structs promise.
#pragma once

#include "kernels/cpu/rows.h"
#include "kernels/ssd_scan.h"

namespace transxssm::cpu {

// An internal error unless every tensor of `in` has its shape, and unit stride where the scan relies on it.
inline void check_ssd_input(const SsdInput& in, DType dtype) {
  expect_float(in.x, "SsdInput.x");
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
  TRANSXSSM_CHECK(in.u.dtype() == dtype && in.u.shape() == (Shape{rows, tokens, heads}),
                  "SsdInput.u is {} {}", dtype_name(in.u.dtype()), in.u.shape().to_string());
  expect(in.dt_bias, "SsdInput.dt_bias", dtype, {heads});
  expect(in.a_log, "SsdInput.a_log", dtype, {heads});
  expect_or_empty(in.d_skip, "SsdInput.d_skip", dtype, {heads});
  TRANSXSSM_CHECK(in.cos.empty() == in.sin.empty(), "SsdInput.cos and sin come together");
  if (in.cos) {
    TRANSXSSM_CHECK(in.cos.size(0) > std::min(in.chunk, tokens), "SsdInput.cos has {} rows, chunk {}",
                    in.cos.size(0), in.chunk);
    expect(in.cos, "SsdInput.cos", dtype, {in.cos.size(0), state_dim / 2});
    expect(in.sin, "SsdInput.sin", dtype, {in.cos.size(0), state_dim / 2});
  }
  expect_or_empty(in.c_scale, "SsdInput.c_scale", dtype, {rows, tokens});
  expect_or_empty(in.start, "SsdInput.start", DType::u8, {rows, tokens});
}

// A state [..,P,N] with P and N contiguous, or empty.
inline void check_ssd_state(const Tensor& state, const char* name, DType dtype, const Shape& shape) {
  expect_or_empty(state, name, dtype, shape);
  const int rank = shape.rank();
  TRANSXSSM_CHECK(!state || state.stride(rank - 2) == shape[rank - 1], "{}: [P,N] is not contiguous", name);
}

}  // namespace transxssm::cpu
