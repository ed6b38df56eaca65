// Well-formed UTF-8 (Unicode, table 3-7).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace transxssm {

// Number of leading bytes of `text` that are well-formed UTF-8: text.size() where all of it is.
size_t valid_utf8_prefix(std::string_view text);

// Bytes of the ill-formed sequence at the start of `text`, 1 to 3: the longest that begins a well-formed one,
// as Unicode recommends for U+FFFD.
size_t ill_formed_length(std::string_view text);

// Replaces each ill-formed sequence by U+FFFD; returns how many there were.
size_t replace_ill_formed(std::string& text);

}  // namespace transxssm
