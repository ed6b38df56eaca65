// Causal grouped-query attention in blocks with an online softmax (Dao 2023): memory O(T).
// Query head h reads key/value head floor(h KV / H). Query i of a row stands at key index i + query_offset
// and sees the keys j with first_key[i] <= j <= i + query_offset.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace transxssm {

struct AttentionForward {
  Tensor q;              // [B,Tq,H,P], rotated
  Tensor k;              // [B,Tk,KV,P], rotated
  Tensor v;              // [B,Tk,KV,P]
  Tensor first_key{};    // [B,Tq] i32, not decreasing in a row; or empty: zero
  Tensor out;            // [B,Tq,H,P] out
  Tensor log_sum_exp{};  // [B,H,Tq] out, for the backward; or empty
  int64_t query_offset = 0;
  double scale = 1;  // of q k^T
};
void run(Stream& stream, const AttentionForward& args);

struct AttentionBackward {
  Tensor q, k, v, first_key, out, log_sum_exp;
  Tensor d_out;  // [B,Tq,H,P]
  Tensor dq;     // [B,Tq,H,P] out
  Tensor dk;     // [B,Tk,KV,P] out
  Tensor dv;     // [B,Tk,KV,P] out
  int64_t query_offset = 0;
  double scale = 1;
  // The same bits on every run, at the price of time on some devices. False allows other orders of sums.
  bool deterministic = true;
};
void run(Stream& stream, const AttentionBackward& args);

}  // namespace transxssm
