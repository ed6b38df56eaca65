#include "runtime/printable.h"

#include <fmt/format.h>

#include <cstdint>

namespace transxssm {
namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 0;  // 0: ill-formed
};

// The first character of a text that is not empty, by the table of well-formed sequences of the Unicode
// standard.
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  uint32_t code = lead & (0x7FU >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3FU);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, bytes};
}

bool is_control(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0);
}

// Characters that change how their neighbours look or that look like nothing: directions, joiners, separators
// of lines, byte order marks, tags.
bool is_deceptive(uint32_t code) {
  const auto in = [code](uint32_t first, uint32_t last) { return code >= first && code <= last; };
  return code == 0xAD || code == 0x61C || in(0x200B, 0x200F) || in(0x2028, 0x202E) || in(0x2060, 0x206F) ||
         code == 0xFEFF || in(0xFFF0, 0xFFFB) || in(0xE0000, 0xE0FFF);
}

std::string shown(std::string_view text, size_t max_bytes, bool keep_lines) {
  constexpr std::string_view kEllipsis = "...";
  std::string result;
  size_t cut = 0;  // of the result, where an ellipsis may stand
  while (!text.empty()) {
    const Character c = first_character(text);
    const size_t bytes = c.bytes == 0 ? 1 : c.bytes;
    if (c.bytes == 0)
      result += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[0]));
    else if (is_control(c.code) && !(keep_lines && (c.code == '\n' || c.code == '\t')))
      result += fmt::format("\\x{:02x}", c.code);
    else if (is_deceptive(c.code))
      result += fmt::format("\\u{{{:x}}}", c.code);
    else
      result += text.substr(0, bytes);
    if (result.size() > max_bytes) return result.substr(0, cut) + std::string(kEllipsis);
    if (result.size() + kEllipsis.size() <= max_bytes) cut = result.size();
    text.remove_prefix(bytes);
  }
  return result;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  return shown(text, max_bytes, false);
}

std::string printable_message(std::string_view message) {
  return shown(message, std::string::npos - 16, true);
}

}  // namespace transxssm
