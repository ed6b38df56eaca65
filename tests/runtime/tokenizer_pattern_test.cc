// The hand-written scanners against splits worked out by hand from the regular expressions.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/data/pretokenizer.h"
#include "runtime/data/unicode_classes.h"

namespace transxssm {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(SplitPattern pattern, const std::string& text) {
  Pieces pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(pattern, text, begin);
    EXPECT_GT(end, begin);
    EXPECT_LE(end, text.size());
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

TEST(TokenizerPattern, Gpt2) {
  const std::pair<std::string, Pieces> cases[] = {
      {"Hello world", {"Hello", " world"}},
      {"it's we'll they're", {"it", "'s", " we", "'ll", " they", "'re"}},
      {"IT'S", {"IT", "'", "S"}},  // contractions in lower case only
      {"a  b", {"a", " ", " b"}},  // a run gives up its last space
      {"a   b", {"a", "  ", " b"}},
      {"a\n\nb", {"a", "\n", "\n", "b"}},  // but a newline does not join the word
      {"a \n b", {"a", " \n", " b"}},
      {"end  ", {"end", "  "}},  // at the end of text it keeps all
      {"x 12345 y", {"x", " 12345", " y"}},
      {"a1b2", {"a", "1", "b", "2"}},
      {" '!", {" '!"}},
      {"''s", {"''", "s"}},
      {"say \"hi\"", {"say", " \"", "hi", "\""}},
      {"\u00e9t\u00e9 \u0661\u0662", {"\u00e9t\u00e9", " \u0661\u0662"}},
      {"e\u0301a", {"e", "\u0301", "a"}},  // a combining mark is no letter
      {"\u00a0x\u3000\u3000y", {"\u00a0", "x", "\u3000", "\u3000", "y"}},
      {" ", {" "}},
  };
  for (const auto& [text, pieces] : cases) EXPECT_EQ(split(SplitPattern::gpt2, text), pieces) << text;
}

TEST(TokenizerPattern, Cl100k) {
  const std::pair<std::string, Pieces> cases[] = {
      {"Hello world", {"Hello", " world"}},
      {"it's IT'S we'LL", {"it", "'s", " IT", "'S", " we", "'LL"}},
      {"x'\u017fy", {"x", "'\u017f", "y"}},  // the long s folds to s
      {"'re's", {"'re", "'s"}},
      {"'text", {"'t", "ext"}},
      {"12345", {"123", "45"}},
      {"a 12", {"a", " ", "12"}},    // digits take no space
      {"(hello)", {"(hello", ")"}},  // one character other than a letter goes in front
      {"!!hello", {"!!", "hello"}},
      {"x;\n\ny", {"x", ";\n\n", "y"}},  // newlines stay with punctuation
      {"x ;\ny", {"x", " ;\n", "y"}},
      {"a \n\n  b", {"a", " \n\n", " ", " b"}},
      {"a\n  \t", {"a", "\n", "  \t"}},
      {"\tx", {"\tx"}},
      {"\nx", {"\n", "x"}},
      {"a  b", {"a", " ", " b"}},
      {"a  ", {"a", "  "}},
      {"\u00a0x", {"\u00a0x"}},
  };
  for (const auto& [text, pieces] : cases) EXPECT_EQ(split(SplitPattern::cl100k, text), pieces) << text;
}

TEST(TokenizerPattern, KnowsRegexByExactString) {
  for (SplitPattern pattern : {SplitPattern::gpt2, SplitPattern::cl100k}) {
    EXPECT_EQ(pattern_of_regex(pattern_regex(pattern)), pattern);
    EXPECT_FALSE(pattern_of_regex(std::string(pattern_regex(pattern)) + " "));
  }
}

TEST(TokenizerPattern, UnicodeClasses) {
  const CharClass* classes = char_classes();
  auto count = [&](CharClass c) { return std::count(classes, classes + 0x110000, c); };
  EXPECT_EQ(count(CharClass::letter), 141028);  // the sizes of \p{L}, \p{N} and \s in Unicode 16
  EXPECT_EQ(count(CharClass::number), 1911);
  EXPECT_EQ(count(CharClass::space) + count(CharClass::newline), 25);
  EXPECT_EQ(classes[0x105C0], CharClass::letter);  // Todhri, new in Unicode 16
  EXPECT_EQ(classes[0x180E], CharClass::other);    // no longer white space
}

}  // namespace
}  // namespace transxssm
