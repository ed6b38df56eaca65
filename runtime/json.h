// JSON from files that are not trusted: one reader with limits on size, depth and number of values, that
// refuses what the library lets pass. Reading takes time and memory in proportion to the text and raises no
// exception of the library.
//
//   const nlohmann::json root = parse_json<DataError>(text, path, {.max_bytes = 1 << 20, .max_depth = 8});
//   if (const auto tokens = json_integer(root, "tokens", 0)) ...
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {

// A value takes at most about 200 bytes of memory beside its text, so max_values bounds the memory; max_depth
// bounds recursion over what is returned.
struct JsonLimits {
  int64_t max_bytes = int64_t{1} << 20;
  int max_depth = 16;  // objects and arrays inside one another; 1: a flat object
  int64_t max_values = 100'000;
};

struct JsonText {
  nlohmann::json value;
  // Empty, or what is wrong, without the file's name and fit to be shown: text beyond a limit, no JSON at
  // all, ill-formed UTF-8, a number beyond the range of double, a key that an object has twice (named with
  // its path). Then `value` is null.
  std::string problem;
  int64_t line = 0, column = 0;  // of the problem, from 1; 0 where it has no place
};

JsonText parse_json(std::string_view text, const JsonLimits& limits = {});

// The value, or NamedError (of runtime/error.h) as "file:line:column: what is wrong".
template <class NamedError>
nlohmann::json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {}) {
  JsonText json = parse_json(text, limits);
  if (json.problem.empty()) return std::move(json.value);
  if (json.line == 0) throw NamedError("{}: {}", file, json.problem);
  throw NamedError("{}:{}:{}: {}", file, json.line, json.column, json.problem);
}

// A whole number in [min, max]; nothing where `value` is anything else: a fraction, 1.0, true, 2^63.
std::optional<int64_t> json_integer(const nlohmann::json& value,
                                    int64_t min = std::numeric_limits<int64_t>::min(),
                                    int64_t max = std::numeric_limits<int64_t>::max());
// Likewise of a member; nothing also where `object` is no object or has no such member.
std::optional<int64_t> json_integer(const nlohmann::json& object, const char* member,
                                    int64_t min = std::numeric_limits<int64_t>::min(),
                                    int64_t max = std::numeric_limits<int64_t>::max());
// A member that is a string; nothing where there is none.
std::optional<std::string> json_string(const nlohmann::json& object, const char* member);

// A value as JSON in one line that is fit to be shown, cut to `max_bytes`.
std::string printable_json(const nlohmann::json& value, size_t max_bytes = 60);

}  // namespace transxssm
