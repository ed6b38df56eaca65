// What of a tokenizer decides the ids of a text, in one number: two files that give every text the same ids
// by the same vocabulary, merges, added tokens, normalizer and pattern have the same digest, whatever their
// layout. What only shows (which tokens are special) or only asks (templates) is left out.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/data/tokenizer.h"
#include "runtime/data/tokenizer_model.h"

namespace transxssm {
namespace {

// FNV-1a over numbers and texts, each text after its length.
class Hash {
 public:
  void add(int64_t value) {
    for (int i = 0; i < 8; ++i) byte(static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  void add(std::string_view text) {
    add(static_cast<int64_t>(text.size()));
    for (const char c : text) byte(static_cast<uint8_t>(c));
  }
  uint64_t value() const { return value_; }

 private:
  void byte(uint8_t b) { value_ = (value_ ^ b) * 0x100000001B3; }
  uint64_t value_ = 0xCBF29CE484222325;
};

}  // namespace

std::string Tokenizer::digest() const {
  const TokenizerSpec& spec = model_->spec();
  Hash hash;
  hash.add("transxssm tokenizer 1");
  hash.add(static_cast<int64_t>(spec.vocab.size()));
  for (const auto& [symbols, id] : spec.vocab) {
    hash.add(symbols);
    hash.add(id);
  }
  hash.add(static_cast<int64_t>(spec.merges.size()));
  for (const auto& [left, right] : spec.merges) {
    hash.add(left);
    hash.add(right);
  }
  // The order of the file decides only between tokens of one content: the first counts.
  std::vector<AddedToken> added = spec.added_tokens;
  std::stable_sort(added.begin(), added.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  hash.add(static_cast<int64_t>(added.size()));
  for (const AddedToken& token : added) {
    hash.add(token.content);
    hash.add(token.id);
    hash.add(token.normalized ? 1 : 0);
  }
  hash.add(spec.ignore_merges ? 1 : 0);
  hash.add(spec.nfc ? 1 : 0);
  hash.add(spec.split ? 1 + static_cast<int64_t>(*spec.split) : 0);
  hash.add(spec.add_prefix_space ? 1 : 0);
  hash.add(spec.use_regex ? 1 : 0);
  return fmt::format("{:016x}", hash.value());
}

}  // namespace transxssm
