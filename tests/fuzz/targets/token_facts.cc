// PREFIX.json: believed or not, never an error.
#include "runtime/data/token_file.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(token_facts, 1024) {
  static const std::string prefix = [] {
    std::string index("MMIDIDX\0\0", 9);
    const auto append = [&](uint64_t value, int bytes) {
      for (int i = 0; i < bytes; ++i) index.push_back(static_cast<char>(value >> (8 * i)));
    };
    append(1, 8), append(8, 1), append(1, 8), append(2, 8);  // version, u16, one sequence, one document
    append(3, 4), append(0, 8), append(0, 8), append(1, 8);
    fuzz::real_file("facts.bin", std::string_view("\1\0\2\0\3\0", 6));
    const std::string path = fuzz::real_file("facts.idx", index);
    return path.substr(0, path.size() - 4);
  }();
  fuzz::real_file("facts.json", input);
  const TokenFile file(prefix);
  fuzz::expect(file.num_tokens() == 3, "PREFIX.json changes the number of tokens");
  file.check_vocabulary(4);
}

}  // namespace transxssm
