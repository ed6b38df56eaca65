// What a tokenizer.json says, as plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/data/pretokenizer.h"

namespace transxssm {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool normalized = false;  // looked for after the normalizer instead of before it
  bool special = true;
};

struct TokenizerSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;  // byte symbols -> id, in order of id
  std::vector<std::pair<int32_t, int32_t>> merges;     // in order of rank; no pair twice
  std::vector<AddedToken> added_tokens;                // in the order of the file
  bool ignore_merges = false;

  bool nfc = false;
  std::optional<SplitPattern> split;  // a Split before ByteLevel
  bool split_removed = false;         // written as Removed + invert instead of Isolated
  bool split_sequence = false;        // the pre-tokenizer is written as a Sequence
  bool add_prefix_space = false;      // of ByteLevel
  bool use_regex = true;              // of ByteLevel: the GPT-2 pattern

  std::vector<int32_t> template_prefix, template_suffix;  // what TemplateProcessing puts around a single text
  std::string post_processor = "null";                    // JSON as read
};

// The checks that hold for every spec: ids, byte symbols, merges, added tokens. DataError with the JSON path.
void check_tokenizer_spec(const TokenizerSpec& spec, const std::string& name);

// Merges in order of rank; of a pair that comes twice the last rank counts.
std::vector<std::pair<int32_t, int32_t>> without_earlier_duplicates(
    const std::vector<std::pair<int32_t, int32_t>>& merges);

}  // namespace transxssm
