// The one virtual interface of the model: a block maps [BT,D] to [BT,D]. It holds views of parameters and no
// per-batch state: what the backward needs lies in `saved` (the microbatch's slot), what the weight gradients
// need beyond that in `pending`. So pipelining, and splitting input from weight gradients, need no block's
// help.
#pragma once

#include "runtime/arena.h"
#include "runtime/stream.h"

namespace transxssm {

// What a layer keeps between calls when it decodes: keys and values, or the state. Empty in training.
struct LayerCache {
  Tensor keys;    // [B, capacity, KV, P], rotated
  Tensor values;  // [B, capacity, KV, P]
  Tensor state;   // [B, H, P, N]
  Tensor window;  // [B, K-1, 2GN + HP]: the convolution's last inputs
};

// Facts of the rows at hand that every layer shares.
struct TokenContext {
  int64_t rows = 0;    // B
  int64_t tokens = 0;  // T
  Tensor position;     // [BT] i32
  Tensor start;        // [B,T] u8: first token of a document
  Tensor first_key;    // [B,T] i32: first token of the row each token may attend to; empty: the row's first
  Tensor q_scale;      // [BT] factor of q (log-n), or empty
  Tensor c_scale;      // [B,T] factor of C (log-n, and the rotary factor of C and B), or empty
  const int64_t* cached = nullptr;  // [B] tokens of each row already in the caches (decoding)
  LayerCache* cache = nullptr;      // of the layer that runs, or null in training
};

class Block {
 public:
  virtual ~Block() = default;

  // y = block(x), both [BT,D].
  virtual void forward(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& y,
                       Carver saved) const = 0;
  // dx from dy; x and saved as the forward left them. Leaves in `pending` what backward_weight needs.
  virtual void backward_input(Stream& stream, const TokenContext& tokens, const Tensor& x, const Tensor& dy,
                              const Tensor& dx, Carver saved, Carver pending) const = 0;
  // Weight gradients accumulate (+=). dy, saved and pending as backward_input saw and left them.
  virtual void backward_weight(Stream& stream, const TokenContext& tokens, const Tensor& dy, Carver saved,
                               Carver pending) const = 0;

  virtual int64_t saved_bytes(int64_t rows, int64_t tokens) const = 0;
  virtual int64_t pending_bytes(int64_t rows, int64_t tokens) const = 0;
  // An empty cache for `rows` sequences of up to `capacity` tokens.
  virtual LayerCache make_cache(Carver& carver, int64_t rows, int64_t capacity) const = 0;
};

}  // namespace transxssm
