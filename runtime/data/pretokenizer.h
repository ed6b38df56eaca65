// Cuts text into the pieces inside which BPE merges: hand-written scanners for the two regular expressions
// that nearly all byte-level tokenizers use, over Unicode 16 classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace transxssm {

enum class SplitPattern : uint8_t {
  gpt2,    // GPT-2, GPT-NeoX, RoBERTa: a letter, number or punctuation run with the space before it
  cl100k,  // cl100k and Llama-3: at most 3 digits, case-insensitive contractions, newlines kept with
           // punctuation
};

// The regular expression as tokenizer.json files write it, and back (exact string, or nothing).
std::string_view pattern_regex(SplitPattern pattern);
std::optional<SplitPattern> pattern_of_regex(std::string_view regex);

// End of the piece that starts at text[begin], begin < text.size(). `text` is valid UTF-8; its end is the end
// of text for the lookahead of the pattern.
size_t piece_end(SplitPattern pattern, std::string_view text, size_t begin);

}  // namespace transxssm
