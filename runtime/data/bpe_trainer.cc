#include "runtime/data/bpe_trainer.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>
#include <span>
#include <unordered_map>

#include "runtime/data/byte_symbols.h"
#include "runtime/data/piece_counter.h"
#include "runtime/data/tokenizer_spec.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 | static_cast<uint32_t>(pair.second);
    const uint64_t mixed = (key ^ key >> 29) * 0x9E3779B97F4A7C15u;
    return mixed ^ mixed >> 32;
  }
};

// Words where a pair has come up, with the count it had then. Largest count first, of equal ones the smaller
// pair.
struct Candidate {
  int64_t count;
  Pair pair;
  std::vector<uint32_t> words;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

// Distinct pieces as sequences of ids that shrink in place.
class Words {
 public:
  void add(std::string_view piece, int64_t count, std::span<const int32_t> byte_ids) {
    begin_.push_back(symbols_.size());
    size_.push_back(static_cast<uint32_t>(piece.size()));
    counts_.push_back(count);
    for (char c : piece) symbols_.push_back(byte_ids[static_cast<unsigned char>(c)]);
  }
  size_t size() const { return counts_.size(); }
  int64_t count(uint32_t word) const { return counts_[word]; }
  std::span<const int32_t> symbols(uint32_t word) const {
    return {symbols_.data() + begin_[word], size_[word]};
  }

  // Replaces every `pair` of a word, from the left, and calls change(neighbouring pair, -1 or +1) for what
  // each replacement takes away and brings.
  template <class Change>
  void merge(uint32_t word, Pair pair, int32_t product, Change&& change) {
    int32_t* symbols = symbols_.data() + begin_[word];
    const uint32_t size = size_[word];
    uint32_t out = 0;
    for (uint32_t i = 0; i < size; ++i, ++out) {
      if (symbols[i] != pair.first || i + 1 >= size || symbols[i + 1] != pair.second) {
        symbols[out] = symbols[i];
        continue;
      }
      if (out > 0) {
        change({symbols[out - 1], pair.first}, -1);
        change({symbols[out - 1], product}, 1);
      }
      if (i + 2 < size) {
        change({pair.second, symbols[i + 2]}, -1);
        change({product, symbols[i + 2]}, 1);
      }
      symbols[out] = product;
      ++i;
    }
    size_[word] = out;
  }

 private:
  std::vector<int32_t> symbols_;
  std::vector<size_t> begin_;
  std::vector<uint32_t> size_;
  std::vector<int64_t> counts_;
};

// The vocabulary while it grows. `bytes` of a token tell whether a product is new: two ways to one token
// share it.
struct Vocabulary {
  std::vector<std::string> symbols;
  std::vector<std::string> bytes;  // of special tokens only where they could be a product
  std::unordered_map<std::string, int32_t> ids;

  int32_t add(const std::string& token_bytes, const std::string& token_symbols) {
    const auto [entry, inserted] = ids.try_emplace(token_bytes, static_cast<int32_t>(symbols.size()));
    if (inserted) {
      symbols.push_back(token_symbols);
      bytes.push_back(token_bytes);
    }
    return entry->second;
  }
};

// The priority queue, the count of every pair, and the words each new pair came up in.
class PairQueue {
 public:
  void change(Pair pair, int64_t count, uint32_t word, bool up) {
    counts_[pair] += count;
    if (!up) return;
    std::vector<uint32_t>& words = fresh_[pair];
    if (words.empty() || words.back() != word) words.push_back(word);
  }

  // Puts the pairs that came up since the last call into the queue.
  void flush() {
    for (auto& [pair, words] : fresh_) {
      const int64_t count = counts_[pair];
      if (count > 0) queue_.push({count, pair, std::move(words)});
    }
    fresh_.clear();
  }

  // The most frequent pair; false when none is left. Counts in the queue may be out of date (only too high,
  // or raised by another entry): such an entry goes back with the right one.
  bool pop(Candidate& result) {
    while (!queue_.empty()) {
      result = std::move(const_cast<Candidate&>(queue_.top()));
      queue_.pop();
      const int64_t count = counts_[result.pair];
      if (count == result.count) return count > 0;
      result.count = count;
      queue_.push(std::move(result));
    }
    return false;
  }

 private:
  std::unordered_map<Pair, int64_t, PairHash> counts_;
  std::unordered_map<Pair, std::vector<uint32_t>, PairHash> fresh_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

struct BpeTrainer::Counter {
  PieceCounter pieces;
  int64_t num_bytes = 0;
};

BpeTrainer::BpeTrainer(BpeTrainerOptions options)
    : options_(std::move(options)), counter_(std::make_unique<Counter>()) {
  auto tokens = options_.special_tokens;
  std::sort(tokens.begin(), tokens.end());
  if (std::adjacent_find(tokens.begin(), tokens.end()) != tokens.end() ||
      (!tokens.empty() && tokens[0].empty())) {
    throw UsageError("A special token is empty or named twice.");
  }
  for (const std::string& token : tokens) {
    if (valid_utf8_prefix(token) != token.size()) throw UsageError("A special token is not valid UTF-8.");
  }
  const size_t least = tokens.size() + 256;
  if (options_.vocab_size < 0 || static_cast<size_t>(options_.vocab_size) < least) {
    throw UsageError("The vocabulary size {} is too small: {} special tokens and 256 bytes need {}.",
                     options_.vocab_size, tokens.size(), least);
  }
}

BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::feed(std::string_view document) {
  if (const size_t valid = valid_utf8_prefix(document); valid != document.size()) {
    throw DataError("The text is not valid UTF-8 at byte {}.", valid);
  }
  counter_->num_bytes += static_cast<int64_t>(document.size());
  for (size_t begin = 0; begin < document.size();) {
    const size_t end = piece_end(options_.pattern, document, begin);
    counter_->pieces.add(document.substr(begin, end - begin));
    begin = end;
  }
}

int64_t BpeTrainer::num_bytes() const {
  return counter_->num_bytes;
}
int64_t BpeTrainer::num_distinct_pieces() const {
  return static_cast<int64_t>(counter_->pieces.size());
}

Tokenizer BpeTrainer::train(const std::function<void(int, int)>& progress) {
  // Ids: special tokens, then the byte symbols in order of code point, then the merges.
  Vocabulary vocabulary;
  for (const std::string& token : options_.special_tokens) {
    // A special token that no merge can spell gets a key outside UTF-8.
    vocabulary.add(symbols_to_bytes(token).value_or("\xFF" + token), token);
  }
  std::vector<unsigned> order(256);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [](unsigned a, unsigned b) { return byte_symbols()[a] < byte_symbols()[b]; });
  std::vector<int32_t> byte_ids(256);
  for (unsigned byte : order) {
    const std::string bytes(1, static_cast<char>(byte));
    byte_ids[byte] = vocabulary.add(bytes, bytes_to_symbols(bytes));
  }

  Words words;
  counter_->pieces.for_each(
      [&](std::string_view piece, int64_t count) { words.add(piece, count, byte_ids); });
  TRANSXSSM_CHECK(words.size() < std::numeric_limits<uint32_t>::max());
  *counter_ = Counter();
  PairQueue queue;
  for (uint32_t word = 0; word < words.size(); ++word) {
    const auto symbols = words.symbols(word);
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      queue.change({symbols[i], symbols[i + 1]}, words.count(word), word, true);
    }
  }
  queue.flush();

  const auto target = static_cast<size_t>(options_.vocab_size);
  std::vector<Pair> merges;
  Candidate best;
  while (vocabulary.symbols.size() < target && queue.pop(best)) {
    const auto [left, right] = best.pair;
    auto joined = [&](const std::vector<std::string>& parts) {
      return parts[static_cast<size_t>(left)] + parts[static_cast<size_t>(right)];
    };
    const int32_t product = vocabulary.add(joined(vocabulary.bytes), joined(vocabulary.symbols));
    merges.push_back(best.pair);
    for (uint32_t word : best.words) {
      const int64_t count = words.count(word);
      words.merge(word, best.pair, product,
                  [&](Pair pair, int sign) { queue.change(pair, sign * count, word, sign > 0); });
    }
    queue.flush();
    if (progress && merges.size() % 256 == 0)
      progress(static_cast<int>(vocabulary.symbols.size()), options_.vocab_size);
  }
  if (progress) progress(static_cast<int>(vocabulary.symbols.size()), options_.vocab_size);

  TokenizerSpec spec;
  for (size_t id = 0; id < vocabulary.symbols.size(); ++id) {
    spec.vocab.emplace_back(vocabulary.symbols[id], static_cast<int32_t>(id));
  }
  spec.merges = without_earlier_duplicates(merges);
  for (const std::string& token : options_.special_tokens) {
    const auto id = vocabulary.ids.at(symbols_to_bytes(token).value_or("\xFF" + token));
    spec.added_tokens.push_back({.content = token, .id = id});
  }
  if (options_.pattern != SplitPattern::gpt2) {
    spec.split = options_.pattern;
    spec.use_regex = false;
  }
  return Tokenizer(std::move(spec), "the trained tokenizer");
}

}  // namespace transxssm
