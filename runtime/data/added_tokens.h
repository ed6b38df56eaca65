// Finds added tokens (special tokens, runs of spaces) in text: leftmost, then longest.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace transxssm {

class AddedTokenMatcher {
 public:
  struct Match {
    size_t begin, end;  // begin == end: none
    int32_t id;
  };

  void add(std::string_view content, int32_t id);  // of the same content the first id stays
  bool empty() const { return nodes_.size() == 1; }
  Match find(std::string_view text, size_t from) const;
  // Whether some token begins before `at` and ends behind it.
  bool straddles(std::string_view text, size_t at) const;
  size_t longest() const { return longest_; }  // bytes

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int32_t>> children;
    int32_t id = -1;
  };
  const int32_t* child(int32_t node, unsigned char byte) const;
  Match match_at(std::string_view text, size_t begin) const;

  size_t longest_ = 0;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::bitset<65536>
      starts_;  // first byte * 256 + second byte of some token (any second where it has one byte)
};

}  // namespace transxssm
