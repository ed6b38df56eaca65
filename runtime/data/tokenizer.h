// Byte-level BPE tokenizers in the tokenizer.json format of Hugging Face `tokenizers`: the same ids for the
// kinds of file named in README.md; every other kind is refused with the JSON path that is not supported.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

struct TokenizerSpec;
class TokenizerModel;

// Immutable and cheap to copy; every method may be called from any number of threads at once.
class Tokenizer {
 public:
  // Throws DataError naming the file and the JSON path of what is not supported.
  static Tokenizer load(const std::string& path);
  static Tokenizer from_json(std::string_view json, const std::string& name = "tokenizer.json");
  explicit Tokenizer(TokenizerSpec spec, const std::string& name = "tokenizer.json");  // as read or trained

  // The whole tokenizer.json. from_json(to_json()) is the same tokenizer and gives the same text.
  std::string to_json() const;

  int32_t vocab_size() const;  // highest id + 1
  // 16 hexadecimal digits of what decides ids: vocabulary, merges, added tokens, normalizer and pattern, not
  // the form of the file.
  std::string digest() const;

  // Appends the ids of `text`, which must be valid UTF-8 (DataError with the byte offset). Special tokens
  // written out in the text become their ids, as in Hugging Face. `add_special_tokens` adds those of
  // TemplateProcessing.
  void encode(std::string_view text, std::vector<int32_t>& ids, bool add_special_tokens = false) const;
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = false) const;

  // One result a document, on `threads` threads; long documents are cut between words and shared out too.
  // DataError names the document (from 0) and the byte offset in it.
  std::vector<std::vector<int32_t>> encode_batch(std::span<const std::string_view> documents,
                                                 int threads) const;

  // The bytes of the ids joined: decode(encode(x)) is x (NFC of x with that normalizer). May end inside a
  // code point when the ids do. DataError for an id without a token (has_token).
  std::string decode(std::span<const int32_t> ids) const;
  std::string_view token_bytes(int32_t id) const;  // valid as long as a copy of this tokenizer lives

  bool has_token(int32_t id) const;  // ids may have holes
  std::optional<int32_t> token_id(
      std::string_view added_token) const;  // of an added (for example special) token
  bool is_special(int32_t id) const;
  // The first there is of end_of_document_names() among the added tokens.
  std::optional<int32_t> end_of_document() const;
  static std::span<const std::string_view> end_of_document_names();

  // Where a text may be cut without changing an id, and how much of it has to be seen for that: see
  // text_reader.h, which alone knows the places worth asking about.
  bool may_cut(std::string_view text, size_t at) const;
  bool straddles(std::string_view text, size_t at) const;  // an added token lies across text[at]
  size_t cut_context() const;                              // bytes

 private:
  std::shared_ptr<const TokenizerModel> model_;
};

}  // namespace transxssm
