#include "runtime/data/utf8.h"

#include <cstdint>
#include <cstring>

namespace transxssm {
namespace {

// Bytes of the sequence at `text` that fit the table; `complete` says whether they are a whole character.
size_t match(std::string_view text, bool& complete) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  complete = lead < 0x80;
  if (complete || lead < 0xC2 || lead > 0xF4) return complete ? 1 : 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size() || byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) return i;
  }
  complete = true;
  return length;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t word;
    if (i + sizeof word <= text.size()) {
      std::memcpy(&word, text.data() + i, sizeof word);
      if ((word & 0x8080808080808080ULL) == 0) {  // eight ASCII characters
        i += sizeof word;
        continue;
      }
    }
    bool complete;
    const size_t length = match(text.substr(i), complete);
    if (!complete) return i;
    i += length;
  }
  return i;
}

size_t ill_formed_length(std::string_view text) {
  bool complete;
  const size_t length = match(text, complete);
  return length == 0 ? 1 : length;
}

size_t replace_ill_formed(std::string& text) {
  size_t at = valid_utf8_prefix(text);
  if (at == text.size()) return 0;
  std::string result(text, 0, at);
  size_t count = 0;
  while (at < text.size()) {
    at += ill_formed_length(std::string_view(text).substr(at));
    result += "\xEF\xBF\xBD";
    ++count;
    const size_t good = valid_utf8_prefix(std::string_view(text).substr(at));
    result.append(text, at, good);
    at += good;
  }
  text = std::move(result);
  return count;
}

}  // namespace transxssm
