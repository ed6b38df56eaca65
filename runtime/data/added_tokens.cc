#include "runtime/data/added_tokens.h"

#include <algorithm>

namespace transxssm {
namespace {

unsigned char byte_at(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

}  // namespace

const int32_t* AddedTokenMatcher::child(int32_t node, unsigned char byte) const {
  for (const auto& entry : nodes_[static_cast<size_t>(node)].children) {
    if (entry.first == byte) return &entry.second;
  }
  return nullptr;
}

void AddedTokenMatcher::add(std::string_view content, int32_t id) {
  if (content.empty()) return;
  longest_ = std::max(longest_, content.size());
  int32_t node = 0;
  for (size_t i = 0; i < content.size(); ++i) {
    if (const int32_t* next = child(node, byte_at(content, i))) {
      node = *next;
    } else {
      const auto created = static_cast<int32_t>(nodes_.size());
      nodes_[static_cast<size_t>(node)].children.emplace_back(byte_at(content, i), created);
      nodes_.emplace_back();
      node = created;
    }
  }
  int32_t& slot = nodes_[static_cast<size_t>(node)].id;
  if (slot < 0) slot = id;
  const size_t row = byte_at(content, 0) * size_t{256};
  if (content.size() > 1) {
    starts_.set(row + byte_at(content, 1));
  } else {
    for (size_t second = 0; second < 256; ++second) starts_.set(row + second);
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::match_at(std::string_view text, size_t begin) const {
  Match match{begin, begin, -1};
  int32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const int32_t* next = child(node, byte_at(text, i));
    if (!next) break;
    node = *next;
    const int32_t id = nodes_[static_cast<size_t>(node)].id;
    if (id >= 0) match = {begin, i + 1, id};
  }
  return match;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t from) const {
  const Match none{text.size(), text.size(), -1};
  if (empty()) return none;
  for (size_t i = from; i < text.size(); ++i) {
    // Nearly every position is passed over here; the last byte can only begin a token of one byte.
    if (i + 1 < text.size() && !starts_[byte_at(text, i) * size_t{256} + byte_at(text, i + 1)]) continue;
    const Match match = match_at(text, i);
    if (match.end > match.begin) return match;
  }
  return none;
}

bool AddedTokenMatcher::straddles(std::string_view text, size_t at) const {
  for (size_t begin = at - std::min(at, longest_ == 0 ? 0 : longest_ - 1); begin < at; ++begin) {
    if (begin + 1 < text.size() && !starts_[byte_at(text, begin) * size_t{256} + byte_at(text, begin + 1)])
      continue;
    if (match_at(text, begin).end > at) return true;  // the longest one decides
  }
  return false;
}

}  // namespace transxssm
