// Byte-pair merging of one piece: the merge of lowest rank first, of these the leftmost.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace transxssm {

// Open-addressing map from a pair of ids to its merge.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = no_rank;
    int32_t product = -1;
  };
  static constexpr uint32_t no_rank = UINT32_MAX;

  explicit MergeTable(size_t num_merges);
  void insert(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const {
    const uint64_t key = make_key(left, right);
    for (size_t i = slot_of(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return slots_[i].merge;
      if (slots_[i].key == no_key) return {};
    }
  }

 private:
  struct Slot {
    uint64_t key = no_key;
    Merge merge;
  };
  static constexpr uint64_t no_key = UINT64_MAX;
  static uint64_t make_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u >> 20) & mask_; }

  std::vector<Slot> slots_;
  size_t mask_;
};

class BpeEncoder {
 public:
  struct Token {
    std::string bytes;
    int32_t id;
  };
  struct Merge {
    int32_t left, right, product;
  };
  // `byte_ids`: id of each byte, -1 where UTF-8 never has it. `whole_pieces`: tokens a piece may equal as a
  // whole (ignore_merges), else empty.
  BpeEncoder(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges,
             const std::vector<Token>& whole_pieces);

  // Appends the ids of a piece. Short ones come from a cache of the calling thread.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  void merge(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view piece, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_;
  MergeTable merges_;
  std::unordered_map<std::string, int32_t> whole_pieces_;
  uint32_t tag_;  // tells this encoder's cache entries from those of others
};

}  // namespace transxssm
