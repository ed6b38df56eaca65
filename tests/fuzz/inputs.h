// Inputs that are kept in files, and what an input may cost.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/fuzz/fuzz.h"

namespace transxssm::fuzz {

struct StoredInput {
  std::string path;
  std::string bytes;
};
// The files of tests/fuzz/<kind>/<target>/, by name; kind is seeds or findings.
std::vector<StoredInput> stored_inputs(const std::string& kind, const std::string& target);

// Runs the input and says what is wrong with it: a fault, or more time or memory than its size allows. Empty
// where nothing is. `accepted` becomes true where the target does not refuse it.
std::string problem_of(const Target& target, std::string_view input, bool& accepted);

}  // namespace transxssm::fuzz
