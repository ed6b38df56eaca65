// tokenizer.json files that are legal and odd: written and read back they stay the same tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <utf8proc.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/data/bpe_trainer.h"
#include "runtime/data/code_point.h"
#include "runtime/data/nfc.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

Json trained(const std::string& text, int vocab_size, std::vector<std::string> special = {"<|endoftext|>"},
             SplitPattern pattern = SplitPattern::gpt2) {
  BpeTrainer trainer({.vocab_size = vocab_size, .special_tokens = std::move(special), .pattern = pattern});
  trainer.feed(text);
  return Json::parse(trainer.train().to_json());
}

void expect_same(const Tokenizer& tokenizer, const std::string& text) {
  const std::string json = tokenizer.to_json();
  const Tokenizer again = Tokenizer::from_json(json);
  EXPECT_EQ(again.to_json(), json);
  EXPECT_EQ(again.encode(text), tokenizer.encode(text));
}

TEST(TokenizerFile, MergesThatLookLikeComments) {
  // The trainer itself makes them, from text such as this.
  std::string text;
  for (int i = 0; i < 13; ++i) text += i < 10 ? "#version\n" : "#versions\n";
  const Json json = trained(text, 257 + 8, {"<|endoftext|>"}, SplitPattern::cl100k);
  EXPECT_NE(json["model"]["vocab"].find("#versions"), json["model"]["vocab"].end()) << json["model"]["vocab"];
  ASSERT_TRUE(json["model"]["merges"].back().is_array()) << json["model"]["merges"];
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_EQ(tokenizer.encode("#versions").size(), 1u);
  expect_same(tokenizer, text);
  // Without such a merge the older form stays.
  EXPECT_TRUE(trained("a version", 260)["model"]["merges"][0].is_string());
}

TEST(TokenizerFile, MergesWithSpacesInTheirParts) {
  Json json = trained("ab ab", 258);
  Json& model = json["model"];
  model["vocab"]["a b"] = 258;
  model["vocab"]["a ba"] = 259;
  model["merges"].push_back({"a b", "a"});
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump());
  expect_same(tokenizer, "ab a b aba");
}

TEST(TokenizerFile, VocabulariesWithHoles) {
  Json json = trained("the other weather the other", 262);
  for (auto& [token, id] : json["model"]["vocab"].items())
    if (id == 261) id = 310;
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_EQ(tokenizer.vocab_size(), 311);
  EXPECT_TRUE(tokenizer.has_token(310));
  for (const int32_t none : {-1, 261, 300, 309, 311}) {
    EXPECT_FALSE(tokenizer.has_token(none));
    EXPECT_FALSE(tokenizer.is_special(none));
    EXPECT_THROW(tokenizer.token_bytes(none), DataError);
  }
  EXPECT_THAT([&] { tokenizer.token_bytes(300); }, ThrowsMessage<DataError>(HasSubstr("with holes")));
  expect_same(tokenizer, "the other weather");
}

TEST(TokenizerFile, EndOfDocument) {
  const auto end_of = [](std::vector<std::string> special) {
    return Tokenizer::from_json(trained("text", 300, std::move(special)).dump()).end_of_document();
  };
  EXPECT_EQ(end_of({"[BOS]", "[EOS]"}), 1);
  EXPECT_EQ(end_of({"<s>", "</s>"}), 1);
  EXPECT_EQ(end_of({"<|user|>", "<|end_of_text|>", "<|endoftext|>"}), 2);  // the order of the names decides
  EXPECT_EQ(end_of({"<|user|>"}), std::nullopt);
}

TEST(TokenizerFile, WhatIsWrongIsSaid) {
  const auto refuses = [](const std::string& json, const char* word) {
    EXPECT_THAT([&] { Tokenizer::from_json(json, "t.json"); }, ThrowsMessage<DataError>(HasSubstr(word)))
        << json;
  };
  const std::string good = trained("ab ab", 258).dump();
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string json = good;
    const size_t at = json.find(from);
    EXPECT_NE(at, json.npos) << from;
    return json.replace(at, from.size(), to);
  };
  refuses(with("\"!\":1,", "\"!\":1,\"!\":1,"), "twice");
  refuses(with("\"!\":1,", "\"!\":1e400,"), "t.json");
  refuses(with("\"!\":1,", "\"!\":1.0,"), "must be an id");
  refuses(with("\"!\":1,", "\"!\":4294967297,"), "must be an id");
  refuses(with("\"!\":1,", "\"!\":4194304,"), "must be an id");
  refuses(with("\"!\":1,", "\"\\ud800\":1,"), "t.json");
  Json long_token = Json::parse(good);
  long_token["added_tokens"][0]["content"] = std::string(4097, 'x');
  refuses(long_token.dump(), "4096 are the most");
}

TEST(TokenizerFile, LinksAreFollowed) {
  const TemporaryDirectory directory;
  directory.write("blob", trained("ab ab", 258).dump());
  ASSERT_EQ(::symlink("blob", (directory / "link").c_str()), 0);
  ASSERT_EQ(::symlink("link", (directory / "tokenizer.json").c_str()), 0);
  EXPECT_EQ(Tokenizer::load(directory / "tokenizer.json").vocab_size(), 258);
  EXPECT_THAT([&] { Tokenizer::load(directory / "none"); }, ThrowsMessage<DataError>(HasSubstr("none")));
  EXPECT_THAT([&] { Tokenizer::load(directory.path()); },
              ThrowsMessage<DataError>(HasSubstr(directory.path())));
}

TEST(TokenizerFile, NfcEqualsTheLibrary) {
  std::mt19937 random(11);
  const std::vector<uint32_t> codes = {'a',    'e',    0x41,   0x300,   0x301,  0x315,  0x323,  0x327,
                                       0x345,  0xE9,   0x1E69, 0x1100,  0x1161, 0x11A8, 0xAC00, 0x1F82,
                                       0x0F73, 0x0344, 0x212B, 0x1D15E, 0x2ADC, 0xFB2C, ' ',    0x0BCA};
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (size_t length = random() % 12; length > 0; --length)
      append_code_point(text, codes[random() % codes.size()]);
    utf8proc_uint8_t* expected = utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    std::string buffer;
    EXPECT_EQ(nfc(text, buffer), std::string(reinterpret_cast<const char*>(expected))) << text;
    std::free(expected);
  }
}

}  // namespace
}  // namespace transxssm
