#include "runtime/data/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "runtime/data/code_point.h"
#include "runtime/data/unicode_classes.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

// Canonical ordering: marks behind a character by class, those of one class as they stand. The library's own
// sort takes quadratic time for a long run of them.
void order_marks(std::vector<utf8proc_int32_t>& codes) {
  const auto combining_class = [](utf8proc_int32_t code) {
    return utf8proc_get_property(code)->combining_class;
  };
  const auto less = [&](utf8proc_int32_t a, utf8proc_int32_t b) {
    return combining_class(a) < combining_class(b);
  };
  for (auto begin = codes.begin(); begin != codes.end();) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, codes.end(), [&](auto code) { return combining_class(code) == 0; });
    if (!std::is_sorted(begin, end, less)) std::stable_sort(begin, end, less);
    begin = end;
  }
}

void append_nfc(std::string& result, std::string_view text) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  constexpr size_t kLongest = 18;  // code points that one of them may become
  thread_local std::vector<utf8proc_int32_t> codes;
  codes.clear();
  for (size_t i = 0; i < text.size();) {
    const auto code = static_cast<utf8proc_int32_t>(next_code_point(text, i));
    const size_t held = codes.size();
    codes.resize(held + kLongest);
    int boundary = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(code, codes.data() + held, kLongest, kOptions, &boundary);
    TRANSXSSM_CHECK(count >= 0 && static_cast<size_t>(count) <= kLongest, "utf8proc: {}", count);
    codes.resize(held + static_cast<size_t>(count));
  }
  order_marks(codes);
  const utf8proc_ssize_t size =
      utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()), kOptions);
  TRANSXSSM_CHECK(size >= 0, "utf8proc: {}", utf8proc_errmsg(size));
  for (utf8proc_ssize_t i = 0; i < size; ++i)
    append_code_point(result, static_cast<uint32_t>(codes[static_cast<size_t>(i)]));
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
