// The Python files of launch/hf, which an export of our own model type carries, as they were at build time.
#pragma once

#include <span>
#include <string_view>

namespace transxssm {

struct PythonFile {
  std::string_view name;
  std::string_view text;
};
std::span<const PythonFile> python_files();

}  // namespace transxssm
