// What users hand over as text: compressed, damaged, of another kind, cut in awkward places.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "runtime/data/bpe_trainer.h"
#include "runtime/data/nfc.h"
#include "runtime/data/separator.h"
#include "runtime/data/text_reader.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "tests/support/compressed.h"
#include "tests/support/growth.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> read_all(const TextReaderOptions& options, TextReader* used = nullptr) {
  TextReader own(options);
  TextReader& reader = used ? *used : own;
  std::vector<std::string> documents;
  bool open = false;
  TextPiece piece;
  while (reader.next(piece)) {
    if (!open) documents.emplace_back();
    documents.back() += piece.text;
    open = !piece.ends_document;
  }
  return documents;
}

std::string error_of(const TextReaderOptions& options) {
  try {
    read_all(options);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

std::string bytes(std::initializer_list<int> values) {
  std::string text;
  for (const int value : values) text += static_cast<char>(value);
  return text;
}

TEST(TextInput, WhatFollowsCompressedDataIsNotLost) {
  const TemporaryDirectory directory;
  const std::string skippable = bytes({0x5A, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3});
  for (const bool gz : {true, false}) {
    const auto pack = gz ? gzip : zstd;
    const std::string name = gz ? "a.gz" : "a.zst", one = pack("one "), two = pack("two");
    const auto read = [&](const std::string& stored) {
      return read_all({.inputs = {directory.write(name, stored)}});
    };
    const auto error = [&](const std::string& stored) {
      return error_of({.inputs = {directory.write(name, stored)}});
    };
    EXPECT_THAT(read(one + two), ElementsAre("one two"));
    EXPECT_THAT(read(one + pack("") + two + pack("")), ElementsAre("one two"));
    EXPECT_THAT(read(one + two + std::string(100'000, '\0')), ElementsAre("one two"));  // padding
    const std::string end = std::to_string(one.size());
    EXPECT_THAT(error(one + "plain text"),
                AllOf(HasSubstr(name), HasSubstr("ends at stored byte " + end), HasSubstr("0x70 at " + end)));
    EXPECT_THAT(error(one + std::string(512, '\0') + two),
                AllOf(HasSubstr("ends at stored byte " + end), HasSubstr(std::to_string(one.size() + 512))));
    EXPECT_THAT(error(one + two.substr(0, 1)), HasSubstr("comes something else"));
    for (size_t cut = 4; cut < two.size(); ++cut)
      EXPECT_THAT(error(one + two.substr(0, cut)), HasSubstr("cut short")) << cut;
    EXPECT_THAT(error(one.substr(0, one.size() - 1)), HasSubstr("cut short"));
    // Names do not matter.
    EXPECT_THAT(read_all({.inputs = {directory.write("plain.txt", one + two)}}), ElementsAre("one two"));
  }
  EXPECT_THAT(read_all({.inputs = {directory.write("b.zst", skippable + zstd("x") + skippable)}}),
              ElementsAre("x"));
  EXPECT_THAT(error_of({.inputs = {directory.write("b.zst", zstd("x") + skippable.substr(0, 9))}}),
              HasSubstr("cut short"));
}

// What a writer that lost its blocks leaves: the library takes it where it decodes piece by piece.
TEST(TextInput, AFrameHoldsWhatItsHeaderSays) {
  const TemporaryDirectory directory;
  using namespace std::string_literals;
  const std::string magic = "\x28\xB5\x2F\xFD", empty_last_block = "\x01\0\0"s;
  // Descriptor, window, and the size less 256 in two bytes.
  const std::string lost = magic + "\x40\x2C\x2C\x01" + empty_last_block;
  for (const std::string& stored : {lost, zstd("before") + lost, lost + zstd("after")})
    for (const size_t at_once : {4, 4096}) {
      TextReaderOptions options{.inputs = {directory.write("a.zst", stored)}};
      options.read_bytes = at_once;
      EXPECT_THAT(error_of(std::move(options)), HasSubstr("Cannot read ")) << at_once;
    }
  const std::string nothing = magic + "\x00\x2C"s + empty_last_block;  // of a size that is not told
  EXPECT_THAT(read_all({.inputs = {directory.write("b.zst", nothing + zstd("x"))}}), ElementsAre("x"));
}

TEST(TextInput, OtherFormatsAreNamedAndRefused) {
  const TemporaryDirectory directory;
  std::string tar(512, '\0');
  tar.replace(0, 8, "name.txt").replace(257, 6, std::string("ustar\0", 6));
  const std::pair<std::string, const char*> files[] = {
      {bytes({0xFD, '7', 'z', 'X', 'Z', 0, 0, 4}), "xz -d"},
      {"BZh91AY&SY....", "bzip2 -d"},
      {bytes({'B', 'Z', 'h', '9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0, 0, 0, 0}), "bzip2 -d"},
      {bytes({4, 0x22, 0x4D, 0x18, 0x64}), "lz4 -d"},
      {bytes({'P', 'A', 'R', '1', 0x15, 4, 0xFF}), "Parquet"},
      {bytes({'P', 'K', 3, 4, 20, 0}), "zip"},
      {bytes({'7', 'z', 0xBC, 0xAF, 0x27, 0x1C}), "7z"},
      {bytes({'A', 'R', 'R', 'O', 'W', '1', 0, 0}), "Arrow"},
      {bytes({0xFF, 0xFF, 0xFF, 0xFF, 0x10, 0}), "Arrow"},
      {bytes({'F', 'E', 'A', '1', 0}), "Feather"},
      {tar, "tar"},
      {bytes({0xFF, 0xFE, 'a', 0}), "iconv -f UTF-16"},
      {bytes({0xFE, 0xFF, 0, 'a'}), "iconv -f UTF-16"},
      {bytes({0xFF, 0xFE, 0, 0, 'a', 0, 0, 0}), "iconv -f UTF-32"},
      {bytes({0, 0, 0xFE, 0xFF, 0, 0, 0, 'a'}), "iconv -f UTF-32"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"}};
  for (const auto& [content, word] : files)
    for (const std::string& stored : {content, gzip(content), zstd(content)})
      for (const bool replace : {false, true})
        for (const char* field : {"", "text"}) {
          const std::string path = directory.write("corpus.txt", stored);
          EXPECT_THAT(error_of({.inputs = {path}, .field = field, .replace_invalid_utf8 = replace}),
                      AllOf(HasSubstr(path), HasSubstr(word), Not(HasSubstr("--invalid-utf8"))));
          // Before any work, too.
          EXPECT_THROW(TextReader({.inputs = {path}, .field = field}), DataError);
        }
  EXPECT_THAT(error_of({.inputs = {directory.write("a.gz", gzip(zstd("text")))}}), HasSubstr("once more"));
  for (const char* text : {"BZh is no text of bzip2", "PAR1 is Parquet's magic", "ORC", "PK", "7z",
                           "\xEF\xBB", "B", "ARROW1\n", "LZIP it"})
    EXPECT_THAT(read_all({.inputs = {directory.write("text", text)}, .replace_invalid_utf8 = true}).size(), 1)
        << text;
}

TEST(TextInput, ByteOrderMarksAreLeftOut) {
  const TemporaryDirectory directory;
  const std::string mark = "\uFEFF";
  EXPECT_THAT(read_all({.inputs = {directory.write("a", mark + "text" + mark)}}), ElementsAre("text" + mark));
  EXPECT_THAT(read_all({.inputs = {directory.write("a", gzip(mark + "text"))}}), ElementsAre("text"));
  EXPECT_THAT(read_all({.inputs = {directory.write("a", mark + "{\"text\":\"x\"}\n")}, .field = "text"}),
              ElementsAre("x"));
  EXPECT_THAT(read_all({.inputs = {directory.write("a", mark)}}), ElementsAre());
  EXPECT_THAT(error_of({.inputs = {directory.write("a", mark + "ab\x92")}}), HasSubstr("byte 5 (0x92)"));
}

TEST(TextInput, Separators) {
  EXPECT_EQ(parse_separator("a\\r\\n\\t\\f\\v\\a\\b\\e\\0\\\\\\'\\\""),
            std::string("a\r\n\t\f\v\a\b\x1B\0\\'\"", 13));
  EXPECT_EQ(parse_separator("\\x1e\\xFF\\u2029\\U0001F642\u00e9"), "\x1E\xFF\u2029\U0001F642\u00e9");
  for (const char* bad : {"", "\\", "a\\", "\\q", "\\x", "\\x1", "\\x1g", "\\x-1", "\\u12", "\\ud800",
                          "\\U00110000", "\\012", "\\N", "\\1"})
    EXPECT_THROW(parse_separator(bad), UsageError) << bad;
  EXPECT_THROW(parse_separator(std::string(1025, 'x')), UsageError);
  const TemporaryDirectory directory;
  EXPECT_THAT(read_all({.inputs = {directory.write("a", "one\r\n\r\ntwo\r\n\r\nthree\r\n")},
                        .separator = parse_separator("\\r\\n\\r\\n")}),
              ElementsAre("one", "two", "three\r\n"));
}

TEST(TextInput, HalvesOfSurrogatePairs) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(
      "a.jsonl",
      "{\"text\":\"one\"}\n{\"text\":\"\\\\ud83d \\ud83d x\\uDE42\\ud83d\\ude42\\ud83d\\ud83d\\ude42\"}\n"
      "{\"text\":\"two\",\"url\":[{\"x\":\"\\udc80\"}]}\n{\"text\":\"three\",\"\\uD800\":1}\n");
  EXPECT_THAT(error_of({.inputs = {path}, .field = "text"}),
              AllOf(HasSubstr("a.jsonl:2: the field \"text\" holds half of a surrogate pair"),
                    HasSubstr("--invalid-utf8 replace")));
  EXPECT_THAT(
      error_of({.inputs = {directory.write("b", "{\"text\":\"x\",\"url\":\"\\udc80\"}")}, .field = "text"}),
      HasSubstr("b:1: the field \"url\""));
  TextReader reader({.inputs = {path}, .field = "text", .replace_invalid_utf8 = true});
  EXPECT_THAT(read_all({.inputs = {path}, .field = "text", .replace_invalid_utf8 = true}, &reader),
              ElementsAre("one", "\\ud83d \uFFFD x\uFFFD\U0001F642\uFFFD\U0001F642", "two", "three"));
  EXPECT_EQ(reader.replacements(), 5);
}

TEST(TextInput, BadLines) {
  const TemporaryDirectory directory;
  const std::string long_line = "{\"text\":\"" + std::string(33 << 20, 'x') + "\"}";
  const std::pair<std::string, const char*> bad[] = {
      {"{\"text\":null}", "the field \"text\" is null"},
      {"{\"text\":[\"a\"]}", "is an array"},
      {"{\"text\":{\"text\":\"a\"}}", "is an object"},
      {"{\"text\":3}", "is a number"},
      {"{\"text\":true}", "is true or false"},
      {"{\"txt\":\"a\"}", "no string field \"text\"; the fields are txt"},
      {"{\"text\":\"a\",\"text\":\"b\"}", "comes 2 times"},
      {"{\"text\":\"a\"", "not valid JSON"},
      {"[]", "no JSON object"},
      {"{\"text\":\"\xFF\"}", "0xFF"},
      {"{\"text\":\"\\ud83d\"}", "surrogate"},
      {long_line, "longer than 32 MiB"}};
  std::string all = "{\"text\":\"first\"}\n";
  for (const auto& [line, word] : bad) {
    const std::string path = directory.write("a.jsonl", "{\"text\":\"ok\"}\n" + line + "\n{\"text\":\"ok\"}");
    EXPECT_THAT(error_of({.inputs = {path}, .field = "text"}),
                AllOf(HasSubstr("a.jsonl:2: "), HasSubstr(word), HasSubstr("--skip-bad-lines")));
    all += line + "\n";
  }
  all += "{\"text\":\"last\"}\n" + long_line;
  TextReader reader({.inputs = {directory.write("all.jsonl", all)}, .field = "text", .skip_bad_lines = true});
  EXPECT_THAT(
      read_all({.inputs = {directory / "all.jsonl"}, .field = "text", .skip_bad_lines = true}, &reader),
      ElementsAre("first", "last"));
  EXPECT_EQ(reader.skipped_lines(), static_cast<int64_t>(std::size(bad)) + 1);
  EXPECT_THAT(reader.first_skipped(), HasSubstr("all.jsonl:2: the field \"text\" is null"));
  EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
}

// A tokenizer with added tokens that hold spaces and newlines, or begin other added tokens.
Tokenizer spaced_tokenizer(bool nfc) {
  BpeTrainer trainer({.vocab_size = 290, .special_tokens = {"<|im start|>", "<|im", "a b c", "x\nyz", " b"}});
  trainer.feed("lomi lomi a b c d e <|im start|> x y");
  auto json = nlohmann::json::parse(trainer.train().to_json());
  const int32_t next = static_cast<int32_t>(json["model"]["vocab"].size());
  json["added_tokens"].push_back({{"id", next},
                                  {"content", "caf\u00e9 au lait"},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", true},
                                  {"special", false}});
  if (nfc) json["normalizer"] = {{"type", "NFC"}};
  return Tokenizer::from_json(json.dump());
}

TEST(TextInput, NoCutGoesThroughAnAddedToken) {
  const TemporaryDirectory directory;
  for (const bool nfc : {false, true}) {
    const Tokenizer tokenizer = spaced_tokenizer(nfc);
    for (const std::string token :
         {"<|im start|>", "<|im middle", "a b c", "x\nyz", "caf\u00e9 au lait", "cafe\u0301 au lait"}) {
      for (size_t pad = 0; pad < 64; ++pad) {
        // A place for a cut before, inside and after the token, at every distance from the end of the window.
        const std::string text =
            "w w " + std::string(pad, 'p') + token + " and more of it " + token + token + " end";
        const std::vector<int32_t> whole = tokenizer.encode(text);
        for (const bool json : {false, true}) {
          const std::string path =
              directory.write("a", json ? nlohmann::json{{"text", text}}.dump() + "\n" : text);
          TextReader reader(
              {.inputs = {path}, .field = json ? "text" : "", .tokenizer = &tokenizer, .piece_bytes = 24});
          std::vector<int32_t> ids;
          TextPiece piece;
          size_t pieces = 0;
          for (; reader.next(piece); ++pieces) tokenizer.encode(piece.text, ids);
          ASSERT_EQ(ids, whole) << token << " after " << pad << (nfc ? " with NFC" : "");
          EXPECT_GT(pieces, 1u);
        }
      }
    }
    // Long documents are cut for the threads of encode_batch too.
    std::string text;
    while (text.size() < (2u << 20))
      text += "a b c <|im start|>some words of no token cafe\u0301 au lait x y ";
    const std::string_view view = text;
    EXPECT_EQ(tokenizer.encode_batch({&view, 1}, 2)[0], tokenizer.encode(text));
  }
}

TEST(TextInput, ARunOfTokensIsStillCutBetweenThem) {
  const Tokenizer tokenizer = spaced_tokenizer(false);
  const TemporaryDirectory directory;
  std::string text;
  while (text.size() < (20u << 20)) text += "<|im start|>";
  TextReader reader({.inputs = {directory.write("a", text)}, .tokenizer = &tokenizer});
  std::vector<int32_t> ids;
  TextPiece piece;
  while (reader.next(piece)) tokenizer.encode(piece.text, ids);
  EXPECT_EQ(reader.unsafe_cuts(), 1);
  EXPECT_EQ(ids, std::vector<int32_t>(text.size() / 12, 0));
}

TEST(TextInput, TimeGrowsWithTheInputAlone) {
  const TemporaryDirectory directory;
  const auto reading = [&](const std::function<std::string(size_t)>& content, TextReaderOptions options) {
    return growth(1 << 19, [&](size_t n) {
      TextReaderOptions all = options;
      all.inputs = {directory.write("a", content(n))};
      read_all(all);
    });
  };
  const auto repeated = [](const std::string& part) {
    return [part](size_t n) {
      std::string text;
      while (text.size() < n) text += part;
      return text;
    };
  };
  const Tokenizer tokenizer = spaced_tokenizer(true);
  EXPECT_LT(reading(repeated("x\n"), {.separator = "\n"}), 6);
  EXPECT_LT(reading(repeated("ab"), {.separator = "abc"}), 6);
  EXPECT_LT(reading(repeated("a\xFF"), {.replace_invalid_utf8 = true}), 6);
  EXPECT_LT(reading(repeated("a b "), {.tokenizer = &tokenizer}), 6);
  EXPECT_LT(reading(repeated("{\"text\":\"a\"}\n"), {.field = "text"}), 6);
  EXPECT_LT(reading(repeated("{\"a\":\"\\ud83d\"}\n"), {.field = "text", .skip_bad_lines = true}), 6);
  EXPECT_LT(reading([](size_t n) { return "{\"text\":\"" + std::string(n, 'x') + "\"}"; }, {.field = "text"}),
            6);
  EXPECT_LT(reading([](size_t n) { return "{\"text\":" + std::string(n, '['); },
                    {.field = "text", .skip_bad_lines = true}),
            6);
  // Marks of falling classes are the worst order to sort.
  const auto marks = [](size_t n) {
    std::string text = "a";
    while (text.size() < n / 2) text += "\u0315";
    while (text.size() < n) text += "\u0300";
    return text;
  };
  EXPECT_LT(growth(1 << 16,
                   [&](size_t n) {
                     std::string buffer;
                     nfc(marks(n), buffer);
                   }),
            6);
  for (const std::string part : {"\u0315\u0300", "aaaa", "  \n ", "<|im star", "ab ", "123"})
    EXPECT_LT(growth(1 << 15, [&](size_t n) { tokenizer.encode(repeated(part)(n)); }), 6) << part;
}

}  // namespace
}  // namespace transxssm
