// Numbers of the indexed dataset format that its writer and its reader share (runtime/data/token_file.h).
#pragma once

#include <cstdint>
#include <string_view>

namespace transxssm::token_file {

inline constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
inline constexpr uint64_t kVersion = 1;
inline constexpr uint8_t kI32 = 4;
inline constexpr uint8_t kU16 = 8;
inline constexpr int64_t kSmallVocabulary = 65500;  // ids of smaller vocabularies are stored as u16
inline constexpr int64_t kHeaderBytes = 34;

inline uint64_t digest(uint32_t index_crc, int64_t num_tokens) {
  return uint64_t{index_crc} << 32 ^ static_cast<uint64_t>(num_tokens);
}

}  // namespace transxssm::token_file
