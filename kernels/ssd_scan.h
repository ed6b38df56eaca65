// State-space duality scan (Dao & Gu 2024, Mamba-2) in chunks, with the rotation of C and B inside. Per head:
//   dt_t = softplus(u_t + dt_bias)     a = -exp(a_log)
//   S_t = exp(a dt_t) S_{t-1} + dt_t X_t (x) R(t) B_t        Y_t = S_t R(t) C_t + d_skip X_t
// Positions of R are local to a chunk, the state moves to the next chunk's frame by one rotation: the output
// depends on differences of positions only, and the final state is in the frame "next token = position 0".
// Head h uses group floor(h G / H). Any T; P, N multiples of 8; G divides H. With x, b, c, y and their
// gradients in bf16 the rest is f32, but for chunk_states, which may be bf16.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct SsdInput {
  Tensor x;                // [B,T,H,P]
  Tensor b;                // [B,T,G,N]
  Tensor c;                // [B,T,G,N]
  Tensor u;                // [B,T,H] dt before bias and softplus
  Tensor dt_bias;          // [H]
  Tensor a_log;            // [H]
  Tensor d_skip{};         // [H] or empty: no skip
  Tensor cos{};            // [Q+1, N/2] rotation by 0..Q, or empty: no rotation
  Tensor sin{};            // [Q+1, N/2]
  Tensor c_scale{};        // [B,T] or empty: further factor of C (log-n, squared factor of a RoPE scaling)
  Tensor start{};          // [B,T] u8 or empty: state is reset before this token
  Tensor initial_state{};  // [B,H,P,N] or empty: zeros
  int64_t chunk = 64;      // Q
};

struct SsdForward {
  SsdInput in;
  Tensor y;              // [B,T,H,P] out
  Tensor final_state{};  // [B,H,P,N] out, or empty; may be in.initial_state
  Tensor
      chunk_states{};  // [B, ceil(T/Q), H, P, N] out: state entering each chunk, for the backward; or empty
};
void run(Stream& stream, const SsdForward& args);

struct SsdBackward {
  SsdInput in;
  Tensor chunk_states;       // [B, ceil(T/Q), H, P, N] from the forward
  Tensor dy;                 // [B,T,H,P]
  Tensor d_final_state{};    // [B,H,P,N] or empty: zeros
  Tensor dx;                 // [B,T,H,P] out
  Tensor db;                 // [B,T,G,N] out
  Tensor dc;                 // [B,T,G,N] out
  Tensor du;                 // [B,T,H] out
  Tensor d_dt_bias;          // [H] +=
  Tensor d_a_log;            // [H] +=
  Tensor d_d_skip{};         // [H] += or empty
  Tensor d_initial_state{};  // [B,H,P,N] out, or empty
};
void run(Stream& stream, const SsdBackward& args);

// Number of chunks of a row of `tokens`: the second dim of chunk_states.
inline int64_t ssd_num_chunks(int64_t tokens, int64_t chunk) {
  return (tokens + chunk - 1) / chunk;
}

}  // namespace transxssm
