#include "runtime/data/bpe_encoder.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <queue>

namespace transxssm {
namespace {

constexpr size_t max_short = 64;  // symbols up to which a scan of an array beats a heap

// One cache line: a piece and its ids. `tag` 0 is empty.
struct alignas(64) CacheEntry {
  uint64_t piece[3];  // zero-padded
  uint32_t tag = 0;
  uint8_t length = 0, num_ids = 0;
  int32_t ids[8];
};
static_assert(sizeof(CacheEntry) == 64);

constexpr size_t max_cached_bytes = sizeof(CacheEntry::piece);
constexpr size_t cache_entries = size_t{1} << 15;  // 2 MiB a thread

CacheEntry* thread_cache() {
  thread_local const std::unique_ptr<CacheEntry[]> cache = std::make_unique<CacheEntry[]>(cache_entries);
  return cache.get();
}

uint32_t next_tag() {
  static std::atomic<uint32_t> tags{0};
  return ++tags;
}

}  // namespace

MergeTable::MergeTable(size_t num_merges)
    : slots_(std::bit_ceil(2 * num_merges + 2)), mask_(slots_.size() - 1) {}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = make_key(left, right);
  size_t i = slot_of(key);
  while (slots_[i].key != no_key && slots_[i].key != key) i = (i + 1) & mask_;
  slots_[i] = {key, merge};
}

BpeEncoder::BpeEncoder(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges,
                       const std::vector<Token>& whole_pieces)
    : byte_ids_(byte_ids), merges_(merges.size()), tag_(next_tag()) {
  uint32_t rank = 0;
  for (const Merge& m : merges) merges_.insert(m.left, m.right, {rank++, m.product});
  for (const Token& token : whole_pieces) whole_pieces_.emplace(token.bytes, token.id);
}

void BpeEncoder::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() > max_cached_bytes) return merge(piece, ids);
  uint64_t words[3] = {};
  std::memcpy(words, piece.data(), piece.size());
  uint64_t hash = (words[0] ^ tag_) * 0x9E3779B97F4A7C15u;
  hash = (hash ^ hash >> 29 ^ words[1]) * 0xBF58476D1CE4E5B9u;
  hash = (hash ^ hash >> 32 ^ words[2]) * 0x94D049BB133111EBu;
  CacheEntry& entry = thread_cache()[hash >> 49];
  static_assert(cache_entries == size_t{1} << (64 - 49));
  if (entry.tag == tag_ && entry.length == piece.size() && entry.piece[0] == words[0] &&
      entry.piece[1] == words[1] && entry.piece[2] == words[2]) {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.num_ids);
    return;
  }
  const size_t begin = ids.size();
  merge(piece, ids);
  const size_t count = ids.size() - begin;
  if (count > std::size(entry.ids)) return;
  entry.tag = tag_;
  entry.length = static_cast<uint8_t>(piece.size());
  entry.num_ids = static_cast<uint8_t>(count);
  std::copy(std::begin(words), std::end(words), entry.piece);
  std::copy(ids.begin() + static_cast<ptrdiff_t>(begin), ids.end(), entry.ids);
}

void BpeEncoder::merge(std::string_view piece, std::vector<int32_t>& ids) const {
  if (!whole_pieces_.empty()) {
    const auto found = whole_pieces_.find(std::string(piece));
    if (found != whole_pieces_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  piece.size() <= max_short ? merge_short(piece, ids) : merge_long(piece, ids);
}

void BpeEncoder::merge_short(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id;
    MergeTable::Merge merge;  // with the symbol after it
  };
  Symbol symbols[max_short];
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) symbols[i].id = byte_ids_[static_cast<unsigned char>(piece[i])];
  auto look_up = [&](size_t i) {
    symbols[i].merge = i + 1 < count ? merges_.find(symbols[i].id, symbols[i + 1].id) : MergeTable::Merge{};
  };
  for (size_t i = 0; i < count; ++i) look_up(i);
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
      if (symbols[i].merge.rank < symbols[best].merge.rank) best = i;
    }
    if (count == 0 || symbols[best].merge.rank == MergeTable::no_rank) break;
    symbols[best].id = symbols[best].merge.product;
    std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  for (size_t i = 0; i < count; ++i) ids.push_back(symbols[i].id);
}

// The same with a heap of (rank, position) over a linked list: n log n, whatever the piece.
void BpeEncoder::merge_long(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id;  // -1: merged into the one before
    size_t previous, next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t left, right;  // still the ids there when it is not out of date
    size_t position;
    bool operator<(const Candidate& other) const {  // the heap yields the largest
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const size_t size = piece.size(), end = size;
  std::vector<Symbol> symbols(size);
  for (size_t i = 0; i < size; ++i) {
    symbols[i] = {byte_ids_[static_cast<unsigned char>(piece[i])], i == 0 ? end : i - 1, i + 1};
  }
  std::vector<Candidate> first;
  auto candidate = [&](size_t i, auto&& use) {
    const Symbol& symbol = symbols[i];
    if (symbol.next == end) return;
    const int32_t right = symbols[symbol.next].id;
    const uint32_t rank = merges_.find(symbol.id, right).rank;
    if (rank != MergeTable::no_rank) use(Candidate{rank, symbol.id, right, i});
  };
  for (size_t i = 0; i < size; ++i) candidate(i, [&](const Candidate& c) { first.push_back(c); });
  std::priority_queue<Candidate> heap(std::less<Candidate>(), std::move(first));
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.position];
    if (left.id != top.left || left.next == end || symbols[left.next].id != top.right) continue;
    Symbol& right = symbols[left.next];
    left.id = merges_.find(top.left, top.right).product;
    left.next = right.next;
    right.id = -1;
    if (left.next != end) symbols[left.next].previous = top.position;
    auto push = [&](const Candidate& c) { heap.push(c); };
    candidate(top.position, push);
    if (left.previous != end) candidate(left.previous, push);
  }
  for (size_t i = 0; i != end; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace transxssm
