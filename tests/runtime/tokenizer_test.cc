#include "runtime/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/data/byte_symbols.h"
#include "runtime/data/code_point.h"
#include "runtime/data/pretokenizer.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

Json added(const std::string& content, int id, bool normalized = false) {
  return {{"id", id},        {"content", content}, {"single_word", false},    {"lstrip", false},
          {"rstrip", false}, {"special", true},    {"normalized", normalized}};
}

// A tokenizer.json: byte b has the id b, merges (pairs of byte strings) the ids from 256 on, then
// <|endoftext|>.
Json file_of(const std::vector<std::pair<std::string, std::string>>& merges) {
  Json model = {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", Json::array()}};
  int id = 0;
  for (; id < 256; ++id) model["vocab"][bytes_to_symbols(std::string(1, static_cast<char>(id)))] = id;
  for (const auto& [left, right] : merges) {
    model["merges"].push_back(bytes_to_symbols(left) + " " + bytes_to_symbols(right));
    auto& entry = model["vocab"][bytes_to_symbols(left + right)];
    if (entry.is_null()) entry = id++;
  }
  return {{"version", "1.0"},
          {"added_tokens", Json::array({added("<|endoftext|>", id)})},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", model}};
}

Tokenizer make(const Json& json) {
  return Tokenizer::from_json(json.dump());
}

std::string random_text(std::mt19937& random, int length) {
  std::string text;
  while (length-- > 0) {
    const uint32_t range = uint32_t{1} << (7 + random() % 14);
    const uint32_t code = random() % std::min(range, 0x110000u);
    if (code < 0xD800 || code >= 0xE000) append_code_point(text, code);
  }
  return text;
}

TEST(Tokenizer, MergesLowestRankFirstThenLeftmost) {
  const Tokenizer tokenizer = make(file_of({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "bc"}}));
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{'a', 256}));
  EXPECT_EQ(tokenizer.encode("aaa"), (Ids{258, 'a'}));
  EXPECT_EQ(tokenizer.encode("aabc"), (Ids{259}));
  EXPECT_EQ(tokenizer.encode("aab"), (Ids{'a', 257}));
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(Tokenizer, EqualsBruteForceMerging) {
  std::mt19937 random(3);
  for (int round = 0; round < 10; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    std::map<std::pair<std::string, std::string>, size_t> ranks;
    while (merges.size() < 60) {
      const std::pair<std::string, std::string> pair = {tokens[random() % tokens.size()],
                                                        tokens[random() % tokens.size()]};
      if (pair.first.size() + pair.second.size() > 12 || !ranks.emplace(pair, merges.size()).second) continue;
      merges.push_back(pair);
      tokens.push_back(pair.first + pair.second);
    }
    const Json json = file_of(merges);
    const Tokenizer tokenizer = make(json);
    for (int length :
         {1, 2, 5, 20, 24, 25, 63, 64, 65, 66, 200, 500}) {  // around the limits of cache and array
      std::string piece;
      for (int i = 0; i < length; ++i) piece.push_back("abc"[random() % 3]);
      std::vector<std::string> symbols;
      for (char c : piece) symbols.emplace_back(1, c);
      for (;;) {
        size_t best = merges.size(), at = 0;
        for (size_t i = 0; i + 1 < symbols.size(); ++i) {
          const auto found = ranks.find({symbols[i], symbols[i + 1]});
          if (found != ranks.end() && found->second < best) best = found->second, at = i;
        }
        if (best == merges.size()) break;
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(at) + 1);
      }
      Ids expected;
      for (const auto& symbol : symbols) expected.push_back(json["model"]["vocab"][symbol]);
      EXPECT_EQ(tokenizer.encode(piece), expected) << piece;
      EXPECT_EQ(tokenizer.encode(piece), expected) << "from the cache: " << piece;
    }
  }
}

TEST(Tokenizer, DecodeGivesBackTheText) {
  std::mt19937 random(5);
  const Tokenizer tokenizer = make(file_of({{"a", "b"}, {"\xC3", "\xA9"}, {" ", "t"}, {" ", " "}}));
  for (int round = 0; round < 300; ++round) {
    const std::string text =
        random_text(random, 50) + "<|endoftext|>\u00e9 the  ab" + random_text(random, 50);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  EXPECT_EQ(tokenizer.token_bytes(257), "\u00e9");
  EXPECT_THROW(tokenizer.decode(Ids{tokenizer.vocab_size()}), DataError);
  EXPECT_THROW(tokenizer.decode(Ids{-1}), DataError);
}

TEST(Tokenizer, InvalidUtf8NamesTheOffset) {
  const Tokenizer tokenizer = make(file_of({}));
  EXPECT_THAT([&] { tokenizer.encode("abc\xC0"); },
              testing::ThrowsMessage<DataError>(testing::HasSubstr("byte 3")));
  const std::string_view documents[] = {"good",
                                        "b\xED"
                                        "ad"};
  EXPECT_THAT(
      [&] { tokenizer.encode_batch(documents, 2); },
      testing::ThrowsMessage<DataError>(testing::HasSubstr("Document 1 is not valid UTF-8 at byte 1")));
}

TEST(Tokenizer, AddedTokensAreLeftmostLongestBeforeThePattern) {
  Json json = file_of({});
  json["added_tokens"] = {added("<|endoftext|>", 256), added("  ", 257), added("   ", 258), added("<|", 259)};
  const Tokenizer tokenizer = make(json);
  EXPECT_EQ(tokenizer.encode("a     b"), (Ids{'a', 258, 257, 'b'}));
  EXPECT_EQ(tokenizer.encode("<|endoftext|><|x"), (Ids{256, 259, 'x'}));
  EXPECT_EQ(tokenizer.token_id("<|"), 259);
  EXPECT_EQ(tokenizer.token_id("<"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(256));
  EXPECT_FALSE(tokenizer.is_special('a'));
  EXPECT_EQ(tokenizer.end_of_document(), 256);
}

TEST(Tokenizer, NfcActsBetweenAddedTokens) {
  Json json = file_of({});
  json["normalizer"] = {{"type", "NFC"}};
  json["added_tokens"] = {added("e\u0301!", 256, true), added("e", 'e')};
  const Tokenizer tokenizer = make(json);
  const auto text = [&](const std::string& s) { return tokenizer.decode(tokenizer.encode(s)); };
  EXPECT_EQ(text("a\u0301x\u212B \u1112\u1161\u11ab q\u0323\u0307 q\u0307\u0323"),
            "\u00e1x\u00c5 \ud55c q\u0323\u0307 q\u0323\u0307");
  EXPECT_EQ(tokenizer.encode("e\u0301"), (Ids{'e', 0xCC, 0x81}));  // never across a token cut out before
  EXPECT_EQ(tokenizer.encode("\u00e9!"), (Ids{256}));  // a normalized token is found in normal form
  EXPECT_EQ(text("\u4e2d\u6587 caf\u00e9"), "\u4e2d\u6587 caf\u00e9");
  // A mark newer than the tables of the reference does not reorder.
  EXPECT_EQ(text("a\u1ac8\u0334\u0301"), "a\u1ac8\u0334\u0301");
}

TEST(Tokenizer, PrefixSpaceActsAfterEverySpecialToken) {
  Json json = file_of({});
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer tokenizer = make(json);
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>b<|endoftext|> c"),
            (Ids{' ', 'a', 256, ' ', 'b', 256, ' ', 'c'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(Tokenizer, IgnoreMergesTakesWholePieces) {
  Json json = file_of({{"a", "b"}});
  json["model"]["vocab"]["abc"] = 257;
  json["added_tokens"][0]["id"] = 258;
  EXPECT_EQ(make(json).encode("abc abc"), (Ids{256, 'c', ' ', 256, 'c'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(make(json).encode("abc abc"), (Ids{257, ' ', 256, 'c'}));
}

TEST(Tokenizer, SplitAndTemplate) {
  Json json = file_of({{"1", "2"}, {"12", "3"}, {"3", "4"}});
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", pattern_regex(SplitPattern::cl100k)}}},
         {"behavior", "Removed"},
         {"invert", true}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}}}};
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}}}}}},
      {"pair", Json::array()},
      {"special_tokens",
       {{"<|endoftext|>", {{"id", "<|endoftext|>"}, {"ids", {259}}, {"tokens", {"<|endoftext|>"}}}}}}};
  const Tokenizer tokenizer = make(json);
  EXPECT_EQ(tokenizer.encode("1234"), (Ids{257, '4'}));
  EXPECT_EQ(tokenizer.encode("1234", true), (Ids{259, 257, '4'}));
  const std::string text = tokenizer.to_json();
  EXPECT_EQ(Tokenizer::from_json(text).to_json(), text);
  EXPECT_EQ(Tokenizer::from_json(text).encode("1234 x", true), tokenizer.encode("1234 x", true));
}

TEST(Tokenizer, SavedAndLoadedIsTheSame) {
  const Tokenizer tokenizer = make(file_of({{"a", "b"}, {"ab", "c"}, {" ", "abc"}}));
  const std::string path = testing::TempDir() + "tokenizer_test.json";
  std::ofstream(path) << tokenizer.to_json();
  const Tokenizer loaded = Tokenizer::load(path);
  EXPECT_EQ(loaded.to_json(), tokenizer.to_json());
  EXPECT_EQ(loaded.encode("abc abc abd"), tokenizer.encode("abc abc abd"));
  std::remove(path.c_str());
  EXPECT_THAT([&] { Tokenizer::load(path); }, testing::ThrowsMessage<DataError>(testing::HasSubstr(path)));
}

TEST(Tokenizer, BatchesCutLongDocumentsWithoutChangingIds) {
  std::mt19937 random(11);
  std::string text;
  while (text.size() < 1'200'000) {
    text += random_text(random, 3);
    text += std::array{
        "word", " ", "  ", "\n", " and", "'s", "12 ", "<|endoftext|>", "   x", " \u00e9"}[random() % 10];
  }
  const std::string_view documents[] = {"first", text, "", "last one"};
  Json json = file_of({{" ", "a"}, {"n", "d"}, {" a", "nd"}, {" ", " "}, {"o", "r"}});
  json["normalizer"] = {{"type", "NFC"}};
  const Tokenizer tokenizer = make(json);
  const auto batch = tokenizer.encode_batch(documents, 3);
  ASSERT_EQ(batch.size(), 4u);
  for (size_t d = 0; d < 4; ++d) EXPECT_EQ(batch[d], tokenizer.encode(documents[d])) << d;
}

TEST(Tokenizer, LongRunsAreNotQuadratic) {
  const Tokenizer tokenizer = make(file_of({{"a", "a"}, {"aa", "aa"}, {" ", " "}, {"a", "b"}}));
  const auto start = std::chrono::steady_clock::now();
  for (const char* unit : {"a", " ", "ab", "!"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start,
            std::chrono::seconds(20));  // quadratic would take hours
}

TEST(Tokenizer, RefusesNamingTheJsonPath) {
  struct Case {
    const char* pointer;
    Json value;
    const char* message;
  };
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "a+"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const Case cases[] = {
      {"/model/type", "WordPiece", "model.type is 'WordPiece'"},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/unk_token", "<unk>", "model.unk_token"},
      {"/model/byte_fallback", true, "model.byte_fallback"},
      {"/model/fuse_unk", true, "model.fuse_unk"},
      {"/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/new_option", true, "new_option"},
      {"/model/merges/0", "x y z", "model.merges[0]"},
      {"/model/merges/0", "a zz", "'zz', which is not in model.vocab"},
      {"/model/merges/0", "a c", "'ac', which is not in model.vocab"},
      {"/model/vocab/ab", 97, "model.vocab"},
      {"/model/vocab/ab", -1, "model.vocab['ab'] must be an id"},
      {"/model/vocab/ab", "7", "model.vocab['ab'] must be an id"},
      {"/normalizer", {{"type", "NFKC"}}, "normalizer.type is 'NFKC'"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer must be an object"},
      {"/pre_tokenizer/type", "Whitespace", "pre_tokenizer.type is 'Whitespace'"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}}, "[0].pattern.Regex"},
      {"/decoder/type", "WordPiece", "decoder.type"},
      {"/post_processor", {{"type", "BertProcessing"}}, "post_processor.type"},
      {"/truncation", {{"max_length", 512}}, "truncation"},
      {"/padding", {{"strategy", "BatchLongest"}}, "padding"},
      {"/added_tokens/0/lstrip", true, "added_tokens[0].lstrip"},
      {"/added_tokens/0/rstrip", true, "added_tokens[0].rstrip"},
      {"/added_tokens/0/single_word", true, "added_tokens[0].single_word"},
      {"/added_tokens/0/id", 300, "added_tokens[0].id is 300, but '<|endoftext|>' is token 257"},
      {"/added_tokens/0/content", "", "added_tokens[0].content"},
  };
  for (const Case& c : cases) {
    Json json = file_of({{"a", "b"}});
    json[Json::json_pointer(c.pointer)] = c.value;
    EXPECT_THAT([&] { make(json); }, testing::ThrowsMessage<DataError>(testing::HasSubstr(c.message)))
        << c.pointer;
  }
  Json json = file_of({});
  json["model"]["vocab"].erase("a");
  EXPECT_THAT([&] { make(json); }, testing::ThrowsMessage<DataError>(testing::HasSubstr("lacks 'a'")));
  json = file_of({});
  json["model"]["vocab"].erase(bytes_to_symbols("\xFF"));  // a byte UTF-8 never has may be missing
  json["added_tokens"] = Json::array();
  EXPECT_EQ(make(json).encode("a"), Ids{'a'});
  EXPECT_THROW(Tokenizer::from_json("{"), DataError);
  EXPECT_THROW(Tokenizer::from_json("[]"), DataError);
  EXPECT_THROW(Tokenizer::from_json(std::string(100'000, '[')), DataError);
}

}  // namespace
}  // namespace transxssm
