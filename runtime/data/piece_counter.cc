#include "runtime/data/piece_counter.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr size_t block_bytes = size_t{1} << 20;

uint64_t hash_of(std::string_view piece) {
  uint64_t hash = piece.size() * 0x9E3779B97F4A7C15u;
  size_t i = 0;
  for (; i < piece.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, piece.data() + i, std::min<size_t>(8, piece.size() - i));
    hash = (hash ^ word) * 0xBF58476D1CE4E5B9u;
    hash ^= hash >> 31;
  }
  return hash;
}

}  // namespace

PieceCounter::PieceCounter() : slots_(size_t{1} << 16) {}

std::string_view PieceCounter::keep(std::string_view piece) {
  if (piece.size() > block_left_) {
    block_left_ = std::max(block_bytes, piece.size());
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(block_left_));
    block_next_ = blocks_.back().get();
  }
  std::memcpy(block_next_, piece.data(), piece.size());
  const std::string_view kept(block_next_, piece.size());
  block_next_ += piece.size();
  block_left_ -= piece.size();
  return kept;
}

void PieceCounter::grow() {
  std::vector<uint32_t> larger(slots_.size() * 2);
  const size_t mask = larger.size() - 1;
  for (uint32_t index : slots_) {
    if (index == 0) continue;
    size_t i = entries_[index - 1].hash & mask;
    while (larger[i] != 0) i = (i + 1) & mask;
    larger[i] = index;
  }
  slots_ = std::move(larger);
}

void PieceCounter::add(std::string_view piece) {
  const uint64_t hash = hash_of(piece);
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  for (; slots_[i] != 0; i = (i + 1) & mask) {
    Entry& entry = entries_[slots_[i] - 1];
    if (entry.hash == hash && entry.piece == piece) {
      ++entry.count;
      return;
    }
  }
  TRANSXSSM_CHECK(entries_.size() + 1 < std::numeric_limits<uint32_t>::max());
  entries_.push_back({keep(piece), 1, hash});
  slots_[i] = static_cast<uint32_t>(entries_.size());
  if (entries_.size() * 2 > slots_.size()) grow();
}

}  // namespace transxssm
