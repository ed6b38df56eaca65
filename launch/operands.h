// Tensors for timing single operations, on the stream's device.
#pragma once

#include <vector>

#include "runtime/stream.h"

namespace transxssm {

class Operands {
 public:
  explicit Operands(Stream& stream) : stream_(stream) {}
  // Small numbers of either sign, f32 or bf16; the same few thousand again and again.
  Tensor numbers(DType dtype, const Shape& shape);
  Tensor ids(const Shape& shape, int64_t below);  // i32 in [0, below)
  Tensor ones(int64_t count);                     // u8
  Tensor scalar(double value);                    // [1] f64
  void clear() { arenas_.clear(); }               // frees all of them

 private:
  Tensor upload(const Tensor& host);

  Stream& stream_;
  std::vector<Arena> arenas_;
};

}  // namespace transxssm
