#include "launch/host_copy.h"

#include "kernels/copy.h"

namespace transxssm {

std::vector<float> to_host(Stream& stream, const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.num_elements()));
  const Tensor host(values.data(), DType::f32, x.shape());
  if (x.dtype() == DType::f32 && x.is_contiguous()) {
    transfer(stream, x, host);
    stream.synchronize();
    return values;
  }
  Scratch scratch(stream, host.num_bytes());
  const Tensor whole = scratch.carver().take(DType::f32, x.shape());
  run(stream, Copy{x, whole});
  transfer(stream, whole, host);
  stream.synchronize();
  return values;
}

void from_host(Stream& stream, const Tensor& elements, const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.num_elements()));
  const Tensor host(values.data(), DType::f32, x.shape());
  copy(elements, host);
  transfer(stream, host, x);
  stream.synchronize();
}

}  // namespace transxssm
