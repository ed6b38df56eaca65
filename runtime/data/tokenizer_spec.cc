#include "runtime/data/tokenizer_spec.h"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "runtime/data/byte_symbols.h"
#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr size_t kMaxAddedToken = 4096;

void check_byte_symbols(const std::unordered_map<std::string_view, int32_t>& ids, const std::string& name) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string symbol = bytes_to_symbols(std::string(1, static_cast<char>(byte)));
    if (!never_in_utf8(byte) && !ids.contains(symbol)) {
      throw DataError(
          "{}: model.vocab lacks '{}', the symbol of byte {:#04x}: it is not a byte-level vocabulary.", name,
          symbol, byte);
    }
  }
}

// An added token has the id of the same vocabulary entry, or the next free id at or above the vocabulary's
// size: other readers number them so, whatever the file says.
void check_added_tokens(const TokenizerSpec& spec, const std::unordered_map<std::string_view, int32_t>& ids,
                        const std::string& name) {
  const auto size = static_cast<int32_t>(spec.vocab.size());
  int32_t next = size;
  std::unordered_set<std::string_view> seen;
  for (size_t i = 0; i < spec.added_tokens.size(); ++i) {
    const AddedToken& token = spec.added_tokens[i];
    if (token.content.empty() || !seen.insert(token.content).second) {
      throw DataError("{}: added_tokens[{}].content is empty or there twice.", name, i);
    }
    if (token.content.size() > kMaxAddedToken)  // looking for it takes time in proportion to its length
      throw DataError("{}: added_tokens[{}].content has {} bytes; {} are the most.", name, i,
                      token.content.size(), kMaxAddedToken);
    const auto known = ids.find(token.content);
    const int32_t expected = known != ids.end() ? known->second : next;
    if (token.id != expected) {
      throw DataError("{}: added_tokens[{}].id is {}, but '{}' is token {}: correct the file.", name, i,
                      token.id, printable(token.content), expected);
    }
    if (token.id >= next) next = token.id + 1;
  }
}

}  // namespace

std::vector<std::pair<int32_t, int32_t>> without_earlier_duplicates(
    const std::vector<std::pair<int32_t, int32_t>>& merges) {
  std::vector<std::pair<int32_t, int32_t>> result;
  std::set<std::pair<int32_t, int32_t>> seen;
  for (size_t i = merges.size(); i-- > 0;) {
    if (seen.insert(merges[i]).second) result.push_back(merges[i]);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

void check_tokenizer_spec(const TokenizerSpec& spec, const std::string& name) {
  std::unordered_map<std::string_view, int32_t> ids;
  int32_t previous = -1;
  for (const auto& [token, id] : spec.vocab) {
    if (id <= previous)
      throw DataError("{}: model.vocab['{}'] has the id {}, which another token has.", name, printable(token),
                      id);
    previous = id;
    ids.emplace(token, id);
  }
  check_byte_symbols(ids, name);
  check_added_tokens(spec, ids, name);
  std::unordered_set<int32_t> all;
  for (const auto& [token, id] : spec.vocab) all.insert(id);
  for (const AddedToken& token : spec.added_tokens) {
    if (!ids.contains(token.content) && !all.insert(token.id).second) {
      throw DataError("{}: added token '{}' has the id {}, which another token has.", name,
                      printable(token.content), token.id);
    }
  }
  for (const auto* list : {&spec.template_prefix, &spec.template_suffix}) {
    for (int32_t id : *list) {
      if (!all.contains(id))
        throw DataError("{}: post_processor uses the id {}, which no token has.", name, id);
    }
  }
}

}  // namespace transxssm
