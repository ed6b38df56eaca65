#include "runtime/data/separator.h"

#include <charconv>
#include <cstdint>

#include "runtime/data/code_point.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr size_t kMaxSeparator = 1024;  // looking for it takes time in proportion to its length

// The number written in exactly `digits` hexadecimal digits at `at`.
uint32_t hexadecimal(std::string_view typed, size_t at, size_t digits) {
  uint32_t value = 0;
  const std::string_view text = typed.substr(at, digits);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || text.size() != digits || end != text.data() + text.size())
    throw UsageError("--separator \"{}\": \\{} needs {} hexadecimal digits.", typed, typed[at - 1], digits);
  return value;
}

}  // namespace

std::string parse_separator(std::string_view typed) {
  constexpr std::string_view kNames = "nrtfvabe0\\'\"", kBytes("\n\r\t\f\v\a\b\x1B\0\\'\"", 12);
  std::string result;
  for (size_t i = 0; i < typed.size(); ++i) {
    if (typed[i] != '\\') {
      result += typed[i];
      continue;
    }
    if (++i == typed.size())
      throw UsageError("--separator \"{}\" ends with a single backslash; write \\\\ for a backslash.", typed);
    const char name = typed[i];
    if (name == 'x') {
      result += static_cast<char>(hexadecimal(typed, i + 1, 2));
      i += 2;
    } else if (name == 'u' || name == 'U') {
      const size_t digits = name == 'u' ? 4 : 8;
      const uint32_t code = hexadecimal(typed, i + 1, digits);
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        throw UsageError("--separator \"{}\": U+{:04X} is no character.", typed, code);
      append_code_point(result, code);
      i += digits;
    } else if (const size_t known = kNames.find(name); known != kNames.npos) {
      if (name == '0' && i + 1 < typed.size() && typed[i + 1] >= '0' && typed[i + 1] <= '9')
        throw UsageError("--separator \"{}\": write \\xHH for a byte by its number.", typed);
      result += kBytes[known];
    } else {
      throw UsageError(
          "--separator \"{}\": \\{} is no escape; there are \\n \\r \\t \\f \\v \\a \\b \\e \\0 \\xHH "
          "\\uHHHH and \\\\.",
          typed, name);
    }
  }
  if (result.empty())
    throw UsageError("--separator is empty; leave it out to take each file for one document.");
  if (result.size() > kMaxSeparator)
    throw UsageError("--separator has {} bytes; {} are the most.", result.size(), kMaxSeparator);
  return result;
}

}  // namespace transxssm
