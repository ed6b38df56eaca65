#include "tests/fuzz/inputs.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/fuzz/measure.h"

namespace transxssm::fuzz {
namespace {

constexpr double kMaxSeconds = 2;  // of the processor, for an input of up to a few hundred kilobytes

}  // namespace

std::vector<StoredInput> stored_inputs(const std::string& kind, const std::string& target) {
  std::vector<StoredInput> list;
  const std::filesystem::path folder = std::filesystem::path(FUZZ_FILES) / kind / target;
  if (!std::filesystem::is_directory(folder)) return list;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream in(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    list.push_back({entry.path().string(), text.str()});
  }
  std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return list;
}

std::string problem_of(const Target& target, std::string_view input, bool& accepted) {
  std::string problem;
  const Cost cost = cost_of([&] {
    try {
      accepted = run_target(target, input) || accepted;
    } catch (const Fault& fault) {
      problem = fault.what;
    }
  });
  if (problem.empty() && cost.seconds > kMaxSeconds) problem = fmt::format("it takes {} s", cost.seconds);
  if (problem.empty() && cost.bytes > allowed_bytes(input.size()))
    problem = fmt::format("it takes {} bytes of memory", cost.bytes);
  return problem;
}

}  // namespace transxssm::fuzz
