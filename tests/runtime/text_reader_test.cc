#include "runtime/data/text_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <zlib.h>
#include <zstd.h>

#include <random>

#include "runtime/data/pretokenizer.h"
#include "runtime/data/utf8.h"
#include "runtime/error.h"
#include "tests/support/compressed.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The documents, each the join of its pieces.
std::vector<std::string> read_all(const TextReaderOptions& options,
                                  std::vector<TextPiece>* pieces = nullptr) {
  TextReader reader(options);
  std::vector<std::string> documents;
  bool open = false;
  TextPiece piece;
  while (reader.next(piece)) {
    if (!open) documents.emplace_back();
    documents.back() += piece.text;
    open = !piece.ends_document;
    if (pieces) pieces->push_back(piece);
  }
  EXPECT_FALSE(open);
  EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
  return documents;
}

std::string error_of(const TextReaderOptions& options) {
  try {
    read_all(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Words, numbers, punctuation, contractions, runs of spaces and newlines, other scripts.
std::string mixed_text(size_t bytes, uint32_t seed) {
  static const std::vector<std::string> kParts = {
      "word", "a",       "It's", "WE'LL", " ",      " ",      " ",      "  ",     "     ", "\n",
      "\n\n", "\r\n",    "\t",   ".",     ",",      "...",    "?!\n",   "1",      "2026",  "3.14",
      "é",    "e\u0301", "漢字", "。",    "\u3000", "\u00a0", "\u2003", "\u0300", "🙂",  "<|endoftext|>",
      "'",    "-",       "_x",   "\n x",  " \n",    "x\ny"};
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < bytes) text += kParts[random() % kParts.size()];
  return text;
}

TEST(Utf8, FindsIllFormedSequences) {
  const auto valid = [](const std::string& text) { return valid_utf8_prefix(text) == text.size(); };
  for (const char* good :
       {"", "abc", "é", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010FFFF"})
    EXPECT_TRUE(valid(good)) << good;
  EXPECT_TRUE(valid(std::string("a\0b", 3)));
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE2\x82",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xF0\x9F\x99"})
    for (size_t pad = 0; pad < 10; ++pad) {
      const std::string text = std::string(pad, 'a') + bad;
      EXPECT_EQ(valid_utf8_prefix(text), pad) << bad;
      EXPECT_EQ(valid_utf8_prefix(text + "bbbbbbbbbbbb"), pad) << bad;
    }
  // One U+FFFD for the longest part that could have begun a character (Unicode 16, table 3-8).
  std::string text = "\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64";
  EXPECT_EQ(replace_ill_formed(text), 6u);
  EXPECT_EQ(text, "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
}

TEST(TextReader, OneDocumentAFile) {
  const TemporaryDirectory directory;
  const std::string a = directory.write("a", "first\nfile"), empty = directory.write("empty", ""),
                    b = directory.write("b", "é");
  EXPECT_THAT(read_all({.inputs = {a, empty, b}}), ElementsAre("first\nfile", "é"));
  EXPECT_THAT(error_of({.inputs = {a, directory / "none"}}), HasSubstr("none"));
  EXPECT_THAT(error_of({.inputs = {directory.path()}}), HasSubstr("directory"));
}

TEST(TextReader, SplitsAtSeparators) {
  const TemporaryDirectory directory;
  // The second one has good places for a cut inside.
  for (const std::string separator : {"\n%%%\n", " end of document "}) {
    std::string text;
    std::vector<std::string> expected;
    for (uint32_t i = 0; i < 300; ++i) {
      expected.push_back(mixed_text(1 + i * 7 % 900, i));
      text += expected.back() + separator;
      if (i % 10 == 0) text += separator;  // an empty document
    }
    const std::string path = directory.write("a", text);
    // Pieces of all sizes put the separators at every place of a piece.
    for (const int64_t piece : {16, 17, 33, 64, 100, 1000, 1 << 20})
      EXPECT_EQ(read_all({.inputs = {path}, .separator = separator, .piece_bytes = piece}), expected)
          << piece;
  }
}

TEST(TextReader, FindsASeparatorAcrossTheEndOfWhatIsRead) {
  // Files are read 256 KiB at a time; the only place for a cut in the first of them is inside the separator.
  const TemporaryDirectory directory;
  const std::string separator = "end of document";
  for (size_t held = 0; held <= separator.size(); ++held) {
    const std::string first((1 << 18) - held, 'x');
    const std::string path = directory.write("a", first + separator + "y");
    EXPECT_EQ(read_all({.inputs = {path}, .separator = separator, .piece_bytes = 1 << 18}),
              (std::vector<std::string>{first, "y"}));
  }
}

TEST(TextReader, CutsLeavePiecesOfThePreTokenizersWhole) {
  for (const SplitPattern pattern : {SplitPattern::gpt2, SplitPattern::cl100k}) {
    const auto split = [&](std::string_view text, std::vector<std::string>& out) {
      for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
        end = piece_end(pattern, text, begin);
        out.emplace_back(text.substr(begin, end - begin));
      }
    };
    for (uint32_t seed = 0; seed < 3000; ++seed) {
      const std::string text = mixed_text(60, seed);
      const size_t cut = last_safe_cut(text);
      if (cut == 0) continue;
      std::vector<std::string> whole, parts;
      split(text, whole);
      split(std::string_view(text).substr(0, cut), parts);
      split(std::string_view(text).substr(cut), parts);
      ASSERT_EQ(parts, whole) << text << " cut at " << cut;
    }
  }
}

TEST(TextReader, GiantDocumentsAreCutAtSafePlaces) {
  const TemporaryDirectory directory;
  const std::string text = mixed_text(3 << 20, 1);
  const std::string path = directory.write("a", text);
  std::vector<TextPiece> pieces;
  EXPECT_THAT(read_all({.inputs = {path}, .piece_bytes = 4096}, &pieces), ElementsAre(text));
  ASSERT_GT(pieces.size(), 700u);
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_LE(pieces[i].text.size(), 4096u);
    EXPECT_EQ(pieces[i].ends_document, i + 1 == pieces.size());
    if (i == 0) continue;
    EXPECT_EQ(pieces[i].text[0], ' ');
    EXPECT_TRUE(std::isalnum(static_cast<unsigned char>(pieces[i - 1].text.back())));
  }
  // No safe place at all: cut between characters, and counted.
  std::string han;
  while (han.size() < (18u << 20)) han += "漢";
  TextReader reader({.inputs = {directory.write("han", han)}});
  TextPiece piece;
  std::string joined;
  while (reader.next(piece)) {
    EXPECT_LE(piece.text.size(), static_cast<size_t>(TextReader::kMaxPiece));
    EXPECT_EQ(piece.text.size() % 3, 0u);
    joined += piece.text;
  }
  EXPECT_TRUE(joined == han);
  EXPECT_EQ(reader.unsafe_cuts(), 1);
}

TEST(TextReader, InvalidUtf8) {
  const TemporaryDirectory directory;
  std::string text(3000, 'x');
  for (size_t i = 50; i < text.size(); i += 50) text[i] = ' ';
  text[2345] = '\x92';
  const std::string path = directory.write("a", text);
  for (const int64_t piece : {100, 1 << 20}) {
    EXPECT_THAT(error_of({.inputs = {path}, .piece_bytes = piece}),
                testing::AllOf(HasSubstr("a: byte 2345 (0x92)"), HasSubstr("--invalid-utf8 replace")));
    TextReader reader({.inputs = {path}, .replace_invalid_utf8 = true, .piece_bytes = piece});
    TextPiece part;
    std::string joined;
    while (reader.next(part)) joined += part.text;
    EXPECT_EQ(joined, text.substr(0, 2345) + "\uFFFD" + text.substr(2346));
    EXPECT_EQ(reader.replacements(), 1);
    EXPECT_EQ(reader.text_bytes(), 3002);
  }
}

TEST(TextReader, JsonLines) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(
      "a.jsonl",
      "{\"id\": 1, \"text\": \"one\\n\\u00e9\\ud83d\\ude42\"}\n\n"
      "{\"text\": \"\"}\r\n"
      "{\"meta\": {\"text\": \"no\"}, \"list\": [\"no\", {\"text\": \"no\"}], \"text\": \"two\"}\n"
      "  {\"text\":\"three\"}");
  EXPECT_THAT(read_all({.inputs = {path, path}, .field = "text"}),
              ElementsAre("one\né🙂", "two", "three", "one\né🙂", "two", "three"));
  const auto error = [&](const std::string& content) {
    return error_of({.inputs = {directory.write("b.jsonl", content)}, .field = "text"});
  };
  EXPECT_THAT(
      error("{\"text\": \"a\"}\n{\"txt\": \"b\", \"id\": 3}\n"),
      testing::AllOf(HasSubstr("b.jsonl:2: there is no string field \"text\""), HasSubstr("txt, id")));
  EXPECT_THAT(error("{\"text\": 3}"), HasSubstr("b.jsonl:1: the field \"text\" is a number"));
  EXPECT_THAT(error("\"text\""), HasSubstr("no JSON object"));
  EXPECT_THAT(error("{\"text\": \"a\"\n"), HasSubstr("b.jsonl:1: not valid JSON"));
  EXPECT_THAT(error("{\"text\": \"a\"} {\"text\": \"b\"}\n"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("{\"text\": " + std::string(100000, '[')), HasSubstr("nested too deeply"));
  EXPECT_THAT(error("{\"text\": \"ab\x92\"}"), HasSubstr("byte 12 (0x92)"));
  EXPECT_THAT(error_of({.inputs = {path}, .separator = "x", .field = "text"}), HasSubstr("--field"));
  EXPECT_THAT(error("{\"text\": \"" + std::string(33 << 20, 'x') + "\"}"), HasSubstr("longer than 32 MiB"));

  const std::string text = mixed_text(10000, 7);
  std::string escaped;
  for (const char c : text)
    escaped += c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : std::string(1, c);
  std::vector<TextPiece> pieces;
  EXPECT_THAT(read_all({.inputs = {directory.write("c", "{\"text\": \"" + escaped + "\"}")},
                        .field = "text",
                        .piece_bytes = 500},
                       &pieces),
              ElementsAre(text));
  EXPECT_GT(pieces.size(), 20u);
}

TEST(TextReader, CompressedFiles) {
  const TemporaryDirectory directory;
  const std::string text = mixed_text(1 << 20, 3);
  // Several members or frames in a file are one text.
  const std::string gz = gzip(text.substr(0, 1000)) + gzip(text.substr(1000));
  const std::string zst = zstd(text.substr(0, 1000)) + zstd(text.substr(1000));
  EXPECT_THAT(read_all({.inputs = {directory.write("a.gz", gz)}}), ElementsAre(text));
  EXPECT_THAT(read_all({.inputs = {directory.write("a.zst", zst)}}), ElementsAre(text));
  EXPECT_THAT(error_of({.inputs = {directory.write("b.gz", gz.substr(0, gz.size() / 2))}}),
              HasSubstr("cut short"));
  EXPECT_THAT(error_of({.inputs = {directory.write("b.zst", zst.substr(0, zst.size() / 2))}}),
              HasSubstr("cut short"));
  std::string bad = gz;
  bad[gz.size() / 2] = static_cast<char>(~bad[gz.size() / 2]);
  EXPECT_THAT(error_of({.inputs = {directory.write("c.gz", bad)}}), HasSubstr("Cannot read"));
  EXPECT_THAT(error_of({.inputs = {directory.write("c.zst", "no zstd")}}), HasSubstr("Cannot read"));
}

TEST(TextReader, MemoryDoesNotGrowWithTheInput) {
  // A document of 256 MiB, from a file of some kilobytes.
  std::string words;
  while (words.size() < (1u << 20)) words += "some words of a long line ";
  const TemporaryDirectory directory;
  std::string frames;
  for (int i = 0; i < 256; ++i) frames += zstd(words);
  const std::string path = directory.write("big.zst", frames);
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const long before = peak_kib();
  TextReader reader({.inputs = {path}});
  TextPiece piece;
  while (reader.next(piece)) {
  }
  EXPECT_EQ(reader.text_bytes(), 256 * static_cast<int64_t>(words.size()));
  EXPECT_LT(peak_kib() - before, 32 << 10);
}

}  // namespace
}  // namespace transxssm
