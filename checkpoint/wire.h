// The bytes of a protobuf message taken apart before they are parsed.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace transxssm {

// Hands the bytes of each message in the repeated fields `apart` to read(field, bytes), in order, and returns
// all other fields, to be parsed as usual. Parsed as a whole, a list of empty messages takes a hundred times
// its bytes before the first of them can be refused. Nothing where `bytes` are not in the format, or read
// returns false. The views are of `bytes`.
std::optional<std::string> split_message(const std::string& bytes, std::initializer_list<int> apart,
                                         const std::function<bool(int field, std::string_view)>& read);

}  // namespace transxssm
