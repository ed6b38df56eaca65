#include "launch/operands.h"

#include <algorithm>

#include "runtime/rng.h"

namespace transxssm {

Tensor Operands::upload(const Tensor& host) {
  arenas_.emplace_back(host.num_bytes(), stream_.device());
  const Tensor tensor = arenas_.back().carver().take(host.dtype(), host.shape());
  transfer(stream_, host, tensor);
  stream_.synchronize();
  return tensor;
}

Tensor Operands::numbers(DType dtype, const Shape& shape) {
  constexpr int64_t kPattern = 4096;
  const Rng rng(1, "operands");
  std::vector<float> pattern(kPattern);
  for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<float>(0.1 * rng.normal(i));
  Arena staging(shape.num_elements() * dtype_bytes(dtype));
  const Tensor host = staging.carver().take(dtype, shape);
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    const float value = pattern[static_cast<size_t>(i % kPattern)];
    if (dtype == DType::bf16)
      host.data<BFloat16>()[i] = to_bfloat16(value);
    else
      host.data<float>()[i] = value;
  }
  return upload(host);
}

Tensor Operands::ids(const Shape& shape, int64_t below) {
  std::vector<int32_t> values(static_cast<size_t>(shape.num_elements()));
  const Rng rng(2, "ids");
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(below)));
  return upload(Tensor(values.data(), DType::i32, shape));
}

Tensor Operands::ones(int64_t count) {
  std::vector<uint8_t> values(static_cast<size_t>(count), 1);
  return upload(Tensor(values.data(), DType::u8, {count}));
}

Tensor Operands::scalar(double value) {
  return upload(Tensor(&value, DType::f64, {1}));
}

}  // namespace transxssm
