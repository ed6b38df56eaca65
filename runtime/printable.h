// Text from files and command lines, made safe to show on a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace transxssm {

// `text` with everything that a terminal would obey rather than show written out: control characters (those
// of C1 and line feeds too) and bytes that are no UTF-8 as \x1b, marks that turn or hide text as \u{202e}.
// What is longer than `max_bytes` ends with "...", which counts.
std::string printable(std::string_view text, size_t max_bytes = 200);

// Likewise for a message of this program that may quote such text: line feeds and tabs stay, nothing is cut.
std::string printable_message(std::string_view message);

}  // namespace transxssm
