// Seeds changed at random, the same way every time, through their target: finds without clang what lies near
// the surface, such as a check that a change to a parser lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <random>

#include "tests/fuzz/inputs.h"

namespace transxssm::fuzz {
namespace {

constexpr int kMutants = 15000;   // of a target, all its seeds together
constexpr int kMaxChanges = 4;    // to one of them
constexpr size_t kMaxBlock = 64;  // bytes inserted, removed or copied at once

class Mutator {
 public:
  explicit Mutator(std::vector<StoredInput> seeds) : seeds_(std::move(seeds)) {}

  // Mutant `i`, of seed i modulo their number.
  std::string mutant(int i) {
    random_.seed(static_cast<uint64_t>(i));
    std::string text = seeds_[static_cast<size_t>(i) % seeds_.size()].bytes;
    const size_t changes = 1 + below(kMaxChanges);
    for (size_t change = 0; change < changes; ++change) change_once(text);
    return text;
  }
  const std::string& seed_of(int i) const { return seeds_[static_cast<size_t>(i) % seeds_.size()].path; }

 private:
  size_t below(size_t end) { return static_cast<size_t>(random_() % end); }
  size_t place(const std::string& text) { return below(text.size() + 1); }
  // A place, and so many bytes from there as there are and the dice say.
  std::pair<size_t, size_t> block(const std::string& text) {
    const size_t at = place(text);
    return {at, below(std::min(kMaxBlock, text.size() - at) + 1)};
  }

  void change_once(std::string& text) {
    switch (below(9)) {
      case 0:
        if (!text.empty()) text[below(text.size())] ^= static_cast<char>(1 << below(8));
        break;
      case 1:
        if (!text.empty()) text[below(text.size())] = static_cast<char>(random_());
        break;
      case 2:
        return insert_bytes(text);
      case 3: {
        const auto [at, count] = block(text);
        text.erase(at, count);
        break;
      }
      case 4: {
        const auto [at, count] = block(text);
        const std::string copy = text.substr(at, count);
        text.insert(place(text), copy);
        break;
      }
      case 5: {
        const auto [at, count] = block(text);
        const std::string copy = text.substr(at, count);
        const size_t to = place(text);
        text.replace(to, count, copy);
        break;
      }
      case 6: {
        const std::string& other = seeds_[below(seeds_.size())].bytes;
        text = text.substr(0, place(text)) + other.substr(place(other));
        break;
      }
      case 7:
        text.resize(place(text));
        break;
      default:
        return put_number(text);
    }
  }

  void insert_bytes(std::string& text) {
    constexpr std::string_view kOfFormats = "{}[]\",:\\ \n0-e\x1b\x80\xff";
    const size_t count = 1 + below(8);
    std::string bytes;
    for (size_t i = 0; i < count; ++i)
      bytes += below(2) == 0 ? kOfFormats[below(kOfFormats.size())] : static_cast<char>(random_());
    text.insert(place(text), below(2) == 0 ? bytes : std::string(count, bytes[0]));
  }

  // A number at the edge of a type over what stands there: as digits, or of 1 to 8 bytes.
  void put_number(std::string& text) {
    constexpr std::array<uint64_t, 12> kEdges = {
        0,         1, 127, 128, 255, 256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, INT64_MAX, uint64_t{1} << 63,
        UINT64_MAX};
    const uint64_t number = kEdges[below(kEdges.size())];
    std::string bytes = std::to_string(number);
    if (below(2) == 0) {
      bytes.clear();
      for (size_t i = 0, count = size_t{1} << below(4); i < count; ++i)
        bytes.push_back(static_cast<char>(number >> (8 * i)));
    }
    text.replace(place(text), bytes.size(), bytes);
  }

  std::vector<StoredInput> seeds_;
  std::mt19937_64 random_;
};

class Mutants : public testing::TestWithParam<Target> {};

TEST_P(Mutants, HoldForChangedSeeds) {
  const Target& target = GetParam();
  Mutator mutator(stored_inputs("seeds", target.name));
  run_target(target, "");  // tables that are made once
  int num_accepted = 0;
  for (int i = 0; i < kMutants; ++i) {
    const std::string input = mutator.mutant(i);
    bool accepted = false;
    const std::string problem = problem_of(target, input, accepted);
    num_accepted += accepted ? 1 : 0;
    if (problem.empty()) continue;
    const std::string path = testing::TempDir() + "mutant_of_" + target.name;
    std::ofstream(path, std::ios::binary) << input;
    FAIL() << "mutant " << i << " of " << mutator.seed_of(i) << ": " << problem << "; it is kept as " << path;
  }
  std::cout << target.name << ": " << kMutants << " inputs, of which " << num_accepted << " are accepted\n";
}

INSTANTIATE_TEST_SUITE_P(Targets, Mutants, testing::ValuesIn(targets()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace transxssm::fuzz
