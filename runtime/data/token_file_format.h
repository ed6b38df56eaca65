// Numbers of the indexed dataset format that its writer and its reader share (runtime/data/token_file.h).
#pragma once

#include <cstdint>
#include <string_view>

namespace transxssm {

// Types of ids in .bin, by the code that .idx has for them. 6 and 7 are floating point and hold no ids.
enum class TokenType : uint8_t { u8 = 1, i8 = 2, i16 = 3, i32 = 4, i64 = 5, u16 = 8 };

constexpr int64_t token_type_bytes(TokenType type) {
  switch (type) {
    case TokenType::u8:
    case TokenType::i8:
      return 1;
    case TokenType::i16:
    case TokenType::u16:
      return 2;
    case TokenType::i32:
      return 4;
    case TokenType::i64:
      return 8;
  }
  return 0;  // no such type
}

namespace token_file {

inline constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
inline constexpr uint64_t kVersion = 1;
inline constexpr int64_t kSmallVocabulary = 65500;  // ids of smaller vocabularies are stored as u16
inline constexpr int64_t kHeaderBytes = 34;

inline uint64_t digest(uint32_t index_crc, int64_t num_tokens) {
  return uint64_t{index_crc} << 32 ^ static_cast<uint64_t>(num_tokens);
}

}  // namespace token_file
}  // namespace transxssm
