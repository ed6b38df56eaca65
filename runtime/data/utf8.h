// UTF-8 checks and repair. A document enters the tokenizer only as valid UTF-8 (Unicode 16, chapter 3, table
// 3-7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace transxssm {

// Byte offset of the first byte that is not part of a valid UTF-8 sequence (overlong forms, surrogates and
// values above U+10FFFF are invalid; so is a sequence cut off at the end), or nothing.
std::optional<size_t> utf8_invalid_offset(std::string_view text);

// `text` with U+FFFD for every maximal invalid subpart (what Python's errors="replace" does).
std::string replace_invalid_utf8(std::string_view text);

// How many of the last bytes of `chunk` (0..3) begin a sequence that the next chunk may complete: keep them
// for it. A reader that does so never splits a code point.
size_t utf8_incomplete_suffix(std::string_view chunk);

// The code point that starts at text[position] of valid UTF-8; `position` moves behind it.
inline uint32_t next_code_point(std::string_view text, size_t& position) {
  auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[position + i])); };
  const uint32_t lead = byte(0);
  uint32_t code = lead;
  size_t length = 1;
  if (lead >= 0xF0) {
    code = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    length = 4;
  } else if (lead >= 0xE0) {
    code = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    length = 3;
  } else if (lead >= 0x80) {
    code = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    length = 2;
  }
  position += length;
  return code;
}

void append_code_point(std::string& text, uint32_t code);

}  // namespace transxssm
