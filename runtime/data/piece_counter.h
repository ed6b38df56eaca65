// Counts pieces of text: a hash map whose keys lie one after another in few allocations.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace transxssm {

class PieceCounter {
 public:
  PieceCounter();
  void add(std::string_view piece);
  size_t size() const { return entries_.size(); }

  // use(piece, count) for every piece, in the order of their first appearance.
  template <class Use>
  void for_each(Use&& use) const {
    for (const Entry& entry : entries_) use(entry.piece, entry.count);
  }

 private:
  struct Entry {
    std::string_view piece;  // in blocks_
    int64_t count;
    uint64_t hash;
  };
  void grow();
  std::string_view keep(std::string_view piece);

  std::vector<std::unique_ptr<char[]>> blocks_;
  size_t block_left_ = 0;
  char* block_next_ = nullptr;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // index into entries_ + 1, 0 is free; a power of two of them
};

}  // namespace transxssm
