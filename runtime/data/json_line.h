// One line of JSONL: a string field of its object.
#pragma once

#include <cstdint>
#include <string>

namespace transxssm {

struct JsonLine {
  std::string text;          // of the field
  std::string problem;       // what is wrong with the line, as the rest of a sentence; empty: nothing
  int64_t replacements = 0;  // halves of surrogate pairs replaced by U+FFFD
};

// `line` is valid UTF-8 and is used up. A \uD800 to \uDFFF that is half of no pair, in any string of the
// line, becomes U+FFFD where `replace`, and is a problem that names its field otherwise. Builds nothing but
// the field.
JsonLine read_json_line(std::string& line, const std::string& field, bool replace);

}  // namespace transxssm
