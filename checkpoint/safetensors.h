// The header of a safetensors file: u64 little-endian length, then JSON that maps each key to dtype, shape
// and the bytes of its row-major elements, which follow the header without holes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tensor.h"

namespace transxssm {

inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;

struct SafetensorsEntry {
  std::string key;
  DType dtype = DType::f32;
  Shape shape;
  int64_t begin = 0;  // bytes after the header
  int64_t end = 0;
  // A dtype of the format for which DType has no value, such as "F16" or "BOOL": `dtype` is then u8. Empty:
  // `dtype` says all.
  std::string_view foreign{};
};

// Length and JSON, padded with spaces so that the data starts at a multiple of `alignment`.
std::string encode_safetensors_header(std::span<const SafetensorsEntry> entries, int64_t alignment);

// Bytes of length and JSON together, from the first 8 bytes of a file of `file_bytes`. Throws
// CheckpointError.
int64_t safetensors_header_bytes(std::string_view first, int64_t file_bytes, const std::string& file);

// The entries in the order of their bytes, from untrusted text: `header` is length and JSON. Throws
// CheckpointError naming `file` and the key. Dtypes that DType lacks are refused unless `with_foreign`.
std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header, int64_t file_bytes,
                                                       const std::string& file, bool with_foreign = false);

// "F16", "BF16": the name of an entry's dtype in the format.
std::string_view dtype_of(const SafetensorsEntry& entry);

}  // namespace transxssm
