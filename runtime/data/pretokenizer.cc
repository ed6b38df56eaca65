#include "runtime/data/pretokenizer.h"

#include "runtime/data/code_point.h"
#include "runtime/data/unicode_classes.h"

namespace transxssm {
namespace {

constexpr std::string_view gpt2_regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view cl100k_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

bool is_space(CharClass c) {
  return c == CharClass::space || c == CharClass::newline;
}

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text), classes_(char_classes()) {}

  size_t gpt2(size_t begin) const {
    if (text_[begin] == '\'') {
      if (size_t length = contraction(begin, false)) return begin + length;
    }
    size_t i = begin;
    CharClass c = take(i);
    if (text_[begin] == ' ' && i < text_.size()) {
      size_t next = i;
      const CharClass after = take(next);
      if (!is_space(after)) {
        i = next;
        c = after;
      }
    }
    return is_space(c) ? spaces(begin) : run(i, c);
  }

  size_t cl100k(size_t begin) const {
    if (text_[begin] == '\'') {
      if (size_t length = contraction(begin, true)) return begin + length;
    }
    size_t i = begin;
    const CharClass c = take(i);
    if (c == CharClass::letter) return run(i, CharClass::letter);
    if (c == CharClass::number) return digits(i);
    size_t next = i;
    const bool more = i < text_.size();
    const CharClass after = more ? take(next) : CharClass::space;
    if (c != CharClass::newline && after == CharClass::letter) return run(next, CharClass::letter);
    if (c == CharClass::other) return run(run(i, CharClass::other), CharClass::newline);
    if (text_[begin] == ' ' && after == CharClass::other) {
      return run(run(next, CharClass::other), CharClass::newline);
    }
    return spaces_or_lines(begin);
  }

 private:
  // Class of the character at text_[i]; `i` moves behind it.
  CharClass take(size_t& i) const {
    const auto byte = static_cast<unsigned char>(text_[i]);
    if (byte < 0x80) {
      ++i;
      return classes_[byte];
    }
    return classes_[next_code_point(text_, i)];
  }

  // End of the run of characters of class `c` from `i` on.
  size_t run(size_t i, CharClass c) const {
    while (i < text_.size()) {
      size_t next = i;
      if (take(next) != c) break;
      i = next;
    }
    return i;
  }

  size_t digits(size_t i) const {
    for (int n = 1; n < 3 && i < text_.size(); ++n) {
      size_t next = i;
      if (take(next) != CharClass::number) break;
      i = next;
    }
    return i;
  }

  // \s+(?!\S)|\s+ : before other text the run gives up its last character, if it has two.
  size_t spaces(size_t begin) const {
    size_t i = begin, last = begin;
    while (i < text_.size()) {
      size_t next = i;
      if (!is_space(take(next))) return last == begin ? i : last;
      last = i;
      i = next;
    }
    return i;
  }

  // \s*[\r\n]+ first: a run of white space up to its last newline.
  size_t spaces_or_lines(size_t begin) const {
    size_t i = begin, line_end = begin;
    while (i < text_.size()) {
      size_t next = i;
      const CharClass c = take(next);
      if (!is_space(c)) break;
      i = next;
      if (c == CharClass::newline) line_end = i;
    }
    return line_end != begin ? line_end : spaces(begin);
  }

  // Length of 's 't 're 've 'm 'll 'd at text_[i], or 0. Case folding also maps U+017F (long s) to s.
  size_t contraction(size_t i, bool ignore_case) const {
    auto letter = [&](size_t k) {
      if (k >= text_.size()) return '\0';
      const char c = text_[k];
      return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(i + 1), second = letter(i + 2);
    switch (first) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return 2;
      case 'r':
      case 'v':
        return second == 'e' ? 3 : 0;
      case 'l':
        return second == 'l' ? 3 : 0;
      default:
        return ignore_case && first == '\xC5' && second == '\xBF' ? 3 : 0;
    }
  }

  std::string_view text_;
  const CharClass* classes_;
};

}  // namespace

std::string_view pattern_regex(SplitPattern pattern) {
  return pattern == SplitPattern::gpt2 ? gpt2_regex : cl100k_regex;
}

std::optional<SplitPattern> pattern_of_regex(std::string_view regex) {
  if (regex == gpt2_regex) return SplitPattern::gpt2;
  if (regex == cl100k_regex) return SplitPattern::cl100k;
  return std::nullopt;
}

size_t piece_end(SplitPattern pattern, std::string_view text, size_t begin) {
  const Scanner scanner(text);
  return pattern == SplitPattern::gpt2 ? scanner.gpt2(begin) : scanner.cl100k(begin);
}

}  // namespace transxssm
