#include "runtime/data/tokenizer_model.h"

#include <algorithm>

#include "runtime/data/byte_symbols.h"
#include "runtime/data/nfc.h"
#include "runtime/data/pretokenizer.h"
#include "runtime/data/utf8.h"

namespace transxssm {
namespace {

bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_cut(std::string_view text, size_t i) {
  return text[i] == ' ' && i > 0 && is_ascii_letter(text[i - 1]);
}

// Composing shortens text: so many bytes before and after may be needed to see one composed byte.
constexpr size_t kDecomposedBytes = 12;

BpeEncoder make_encoder(const TokenizerSpec& spec) {
  std::unordered_map<std::string_view, int32_t> ids;
  std::unordered_map<int32_t, std::string_view> tokens;
  std::vector<BpeEncoder::Token> whole_pieces;
  for (const auto& [token, id] : spec.vocab) {
    ids.emplace(token, id);
    tokens.emplace(id, token);
    if (!spec.ignore_merges) continue;
    if (auto bytes = symbols_to_bytes(token)) whole_pieces.push_back({std::move(*bytes), id});
  }
  std::array<int32_t, 256> byte_ids;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(bytes_to_symbols(std::string(1, static_cast<char>(byte))));
    byte_ids[byte] = found == ids.end() ? -1 : found->second;
  }
  std::vector<BpeEncoder::Merge> merges;
  merges.reserve(spec.merges.size());
  for (const auto& [left, right] : spec.merges) {
    const std::string product = std::string(tokens.at(left)).append(tokens.at(right));
    merges.push_back({left, right, ids.at(product)});
  }
  return {byte_ids, merges, whole_pieces};
}

// Calls use(piece) for every piece of the text.
template <class Use>
void for_each_piece(SplitPattern pattern, std::string_view text, Use&& use) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(pattern, text, begin);
    use(text.substr(begin, end - begin));
    begin = end;
  }
}

// Calls use(text between added tokens, if any) and appends the ids of the added tokens.
template <class Use>
void cut_added_tokens(const AddedTokenMatcher& tokens, std::string_view text, std::vector<int32_t>& ids,
                      Use&& use) {
  for (size_t begin = 0; begin < text.size();) {
    const AddedTokenMatcher::Match match = tokens.find(text, begin);
    if (match.begin > begin) use(text.substr(begin, match.begin - begin));
    if (match.end > match.begin) ids.push_back(match.id);
    begin = match.end;
  }
}

const TokenizerSpec& checked(const TokenizerSpec& spec, const std::string& name) {
  check_tokenizer_spec(spec, name);
  return spec;
}

}  // namespace

TokenizerModel::TokenizerModel(TokenizerSpec spec, const std::string& name)
    : spec_(std::move(spec)), encoder_(make_encoder(checked(spec_, name))) {
  auto entry = [&](int32_t id) -> Entry& {
    if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(static_cast<size_t>(id) + 1);
    return entries_[static_cast<size_t>(id)];
  };
  for (const auto& [token, id] : spec_.vocab)
    entry(id) = {symbols_to_bytes(token).value_or(token), true, false};
  splits_ = spec_.split.has_value() || spec_.use_regex;
  // Special tokens first: where the normalizer makes two contents equal, the first one added counts.
  for (bool special : {true, false}) {
    for (const AddedToken& token : spec_.added_tokens) {
      if (token.special != special) continue;
      entry(token.id) = {token.content, true, token.special};
      added_ids_.emplace(token.content, token.id);
      std::string buffer;
      const std::string_view content =
          token.normalized && spec_.nfc ? nfc(token.content, buffer) : token.content;
      (token.normalized ? normalized_tokens_ : raw_tokens_).add(content, token.id);
    }
  }
}

void TokenizerModel::encode(std::string_view text, std::vector<int32_t>& ids) const {
  thread_local std::string buffer;
  cut_added_tokens(raw_tokens_, text, ids, [&](std::string_view part) {
    const std::string_view normal = spec_.nfc ? nfc(part, buffer) : part;
    cut_added_tokens(normalized_tokens_, normal, ids,
                     [&](std::string_view rest) { encode_normalized(rest, ids); });
  });
}

void TokenizerModel::encode_normalized(std::string_view text, std::vector<int32_t>& ids) const {
  if (!spec_.split) return encode_byte_level(text, ids);
  for_each_piece(*spec_.split, text, [&](std::string_view piece) { encode_byte_level(piece, ids); });
}

void TokenizerModel::encode_byte_level(std::string_view text, std::vector<int32_t>& ids) const {
  std::string prefixed;
  if (spec_.add_prefix_space && text[0] != ' ') {
    prefixed.reserve(text.size() + 1);
    text = prefixed.append(" ").append(text);
  }
  if (!spec_.use_regex) return encoder_.encode(text, ids);
  for_each_piece(SplitPattern::gpt2, text, [&](std::string_view piece) { encoder_.encode(piece, ids); });
}

bool TokenizerModel::straddles(std::string_view text, size_t at) const {
  if (raw_tokens_.straddles(text, at)) return true;
  if (normalized_tokens_.empty()) return false;
  if (!spec_.nfc) return normalized_tokens_.straddles(text, at);
  // Nothing composes over a cut that stands beside a space or a newline, so the sides are normalized alone.
  const auto is_start = [&](size_t i) {
    return i == text.size() || (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80;
  };
  size_t begin = at - std::min(at, cut_context()), end = std::min(text.size(), at + cut_context());
  while (begin < at && !is_start(begin)) ++begin;
  while (end > at && !is_start(end)) --end;
  std::string left(text.substr(begin, at - begin)), right(text.substr(at, end - at)), buffer;
  replace_ill_formed(left);  // the text may not have been checked yet
  replace_ill_formed(right);
  std::string joined(nfc(left, buffer));
  const size_t middle = joined.size();
  joined += nfc(right, buffer);
  return normalized_tokens_.straddles(joined, middle);
}

size_t TokenizerModel::cut_context() const {
  const size_t normalized = normalized_tokens_.longest() * (spec_.nfc ? kDecomposedBytes : 1);
  return std::max(raw_tokens_.longest(), normalized) + 4;
}

bool TokenizerModel::may_cut(std::string_view text, size_t at) const {
  if (!splits_ || (spec_.add_prefix_space && text[at] != ' ')) return false;
  return !straddles(text, at);
}

// Both patterns begin a new piece at a space after a letter, NFC never changes a space, and what comes before
// is scanned without looking further; so it is enough that no added token reaches over the cut.
size_t TokenizerModel::safe_cut(std::string_view text, size_t from) const {
  if (!splits_) return text.size();
  for (size_t i = from; i < text.size(); ++i) {
    if (is_cut(text, i) && may_cut(text, i)) return i;
  }
  return text.size();
}

}  // namespace transxssm
