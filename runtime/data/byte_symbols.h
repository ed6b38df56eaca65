// The bijection of GPT-2 between bytes and printable characters, in which byte-level vocabularies are
// written: printable Latin-1 bytes stand for themselves, the other 68 are U+0100 and up in order.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace transxssm {

const std::array<uint32_t, 256>& byte_symbols();  // code point of each byte

std::string bytes_to_symbols(std::string_view bytes);
// Nothing when a character is no byte symbol (then the token stands for its own UTF-8).
std::optional<std::string> symbols_to_bytes(std::string_view symbols);

// The 13 byte values that never occur in UTF-8: a vocabulary may lack them.
inline bool never_in_utf8(unsigned byte) {
  return byte == 0xC0 || byte == 0xC1 || byte >= 0xF5;
}

}  // namespace transxssm
