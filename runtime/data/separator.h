// The text that ends a document, as it is typed on a command line.
#pragma once

#include <string>
#include <string_view>

namespace transxssm {

// The bytes that `typed` stands for: \n \r \t \f \v \a \b \e \0 \\ \' \" \xHH \uHHHH \UHHHHHHHH as in C,
// everything else as it is. UsageError where it is empty, or an escape is unknown or incomplete: it would
// never match.
std::string parse_separator(std::string_view typed);

}  // namespace transxssm
