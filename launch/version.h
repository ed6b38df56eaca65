#pragma once

#include <string>

namespace transxssm {

// What --version prints: version, commit, compiler and libraries.
std::string version_text();
// "0.1.0 (1234abcd)": one line for logs and checkpoints.
std::string short_version();

}  // namespace transxssm
