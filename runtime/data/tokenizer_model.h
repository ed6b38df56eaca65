// What a Tokenizer shares between its copies: the tables made from a TokenizerSpec.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/data/added_tokens.h"
#include "runtime/data/bpe_encoder.h"
#include "runtime/data/tokenizer_spec.h"

namespace transxssm {

class TokenizerModel {
 public:
  TokenizerModel(TokenizerSpec spec, const std::string& name);  // DataError as check_tokenizer_spec

  struct Entry {
    std::string bytes;
    bool exists = false, special = false;
  };
  const TokenizerSpec& spec() const { return spec_; }
  const std::vector<Entry>& entries() const { return entries_; }  // by id
  const std::unordered_map<std::string, int32_t>& added_ids() const { return added_ids_; }

  // Appends the ids of valid UTF-8: added tokens are cut out, then normalizer, added tokens again, pieces,
  // merges.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

  // Whether an added token lies across text[at], so that a cut there would change ids.
  bool straddles(std::string_view text, size_t at) const;
  // Whether the text may be cut at `at`, before a space that follows an ASCII letter or digit or after a lone
  // newline, without changing an id. Looks at cut_context() bytes on either side; they may be ill-formed.
  bool may_cut(std::string_view text, size_t at) const;
  size_t cut_context() const;
  // A place in [from, text.size()] where the text may be cut without changing any id; text.size() if there is
  // none.
  size_t safe_cut(std::string_view text, size_t from) const;

 private:
  void encode_normalized(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_byte_level(std::string_view text, std::vector<int32_t>& ids) const;

  TokenizerSpec spec_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, int32_t> added_ids_;
  AddedTokenMatcher raw_tokens_, normalized_tokens_;
  BpeEncoder encoder_;
  bool splits_ = false;  // a pre-tokenizer cuts the text into pieces
};

}  // namespace transxssm
