#include "runtime/data/nfc.h"

#include <utf8proc.h>

#include <cstdlib>

#include "runtime/data/code_point.h"
#include "runtime/data/unicode_classes.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

void append_nfc(std::string& result, std::string_view text) {
  utf8proc_uint8_t* normal = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &normal, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  TRANSXSSM_CHECK(size >= 0, "utf8proc: {}", utf8proc_errmsg(size));
  result.append(reinterpret_cast<const char*>(normal), static_cast<size_t>(size));
  std::free(normal);
}

// The reference has older tables: to it a newer character is inert. Such a one before a stretch stays out of
// it when the library here knows it as a combining character, or lies in the range where newer starters
// compose.
bool stays_out(uint32_t code) {
  return (code >= 0x10000 && code < 0x11099) ||
         utf8proc_get_property(static_cast<utf8proc_int32_t>(code))->combining_class != 0;
}

}  // namespace

// Text before a character that is not active never changes with it. So only stretches of active characters,
// each with the character before it, go through the library; nearly all text is copied or not even that.
std::string_view nfc(std::string_view text, std::string& buffer) {
  const bool* active = nfc_active();
  size_t copied = 0;    // text[0, copied) is in the buffer
  size_t previous = 0;  // start of the character before i
  bool changed = false;
  size_t i = 0;
  uint32_t before = 0;
  while (i < text.size()) {
    size_t next = i;
    const uint32_t code = next_code_point(text, next);
    if (code < 0x300 || !active[code]) {
      previous = i;
      before = code;
      i = next;
      continue;
    }
    while (next < text.size()) {
      size_t after = next;
      if (!active[next_code_point(text, after)]) break;
      next = after;
    }
    const size_t begin = stays_out(before) ? i : previous;
    if (!changed) buffer.clear();
    changed = true;
    buffer.append(text.substr(copied, begin - copied));
    append_nfc(buffer, text.substr(begin, next - begin));
    copied = previous = i = next;
    before = 0;
  }
  return changed ? std::string_view(buffer.append(text.substr(copied))) : text;
}

}  // namespace transxssm
