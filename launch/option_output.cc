#include "launch/option_output.h"

#include <fstream>
#include <utility>

namespace transxssm {

std::unique_ptr<OutputFiles> option_output(const std::string& path, bool overwrite,
                                           std::vector<std::string> inputs) {
  if (path.empty()) return nullptr;
  return std::make_unique<OutputFiles>(posix_file_system(), std::vector<std::string>{path},
                                       OutputRules{.overwrite = overwrite, .inputs = std::move(inputs)});
}

bool begins_with(const std::string& path, std::string_view head) {
  std::string bytes(head.size(), ' ');
  std::ifstream file(path, std::ios::binary);
  return file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())) && bytes == head;
}

}  // namespace transxssm
