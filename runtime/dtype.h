// Element types of tensors. bf16 has its place in the types; the CPU kernels compute in f32 (and f64 for
// gradient checks).
#pragma once

#include <cstdint>

namespace transxssm {

enum class DType : uint8_t { f32, f64, bf16, i32, i64, u8 };

// Bytes of one element.
int64_t dtype_bytes(DType dtype);
// "f32", "bf16", ...
const char* dtype_name(DType dtype);

struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

}  // namespace transxssm
