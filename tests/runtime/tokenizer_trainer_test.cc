// The trainer against one that counts all pairs anew for every merge.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "runtime/data/bpe_trainer.h"
#include "runtime/data/byte_symbols.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using Merges = std::vector<std::string>;  // "left right" in bytes

struct BruteForce {
  Merges merges;
  bool product_twice = false;  // two ways to one token: from there on counts are a matter of convention
};

BruteForce brute_force(const std::vector<std::string>& documents, size_t num_merges) {
  std::vector<std::vector<std::string>> words;
  for (const std::string& document : documents) {
    for (size_t begin = 0; begin < document.size();) {
      const size_t end = piece_end(SplitPattern::gpt2, document, begin);
      words.emplace_back();
      for (; begin < end; ++begin) words.back().emplace_back(1, document[begin]);
    }
  }
  std::map<std::string, int> ids;
  std::map<uint32_t, std::string> by_code;
  for (size_t b = 0; b < 256; ++b) by_code[byte_symbols()[b]] = std::string(1, static_cast<char>(b));
  for (const auto& [code, byte] : by_code) ids.emplace(byte, static_cast<int>(ids.size()) + 1);
  BruteForce result;
  while (result.merges.size() < num_merges) {
    std::map<std::pair<std::string, std::string>, int> counts;
    for (const auto& word : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    }
    std::tuple<int, int, int> best{0, 0, 0};  // count, then the smaller ids
    std::pair<std::string, std::string> pair;
    for (const auto& [candidate, count] : counts) {
      const std::tuple<int, int, int> key{count, -ids[candidate.first], -ids[candidate.second]};
      if (key > best) best = key, pair = candidate;
    }
    if (std::get<0>(best) == 0) break;
    const std::string product = pair.first + pair.second;
    if (!ids.emplace(product, static_cast<int>(ids.size()) + 1).second) {
      result.product_twice = true;
      break;
    }
    result.merges.push_back(pair.first + " " + pair.second);
    for (auto& word : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) {
        if (word[i] != pair.first || word[i + 1] != pair.second) continue;
        word[i] = product;
        word.erase(word.begin() + static_cast<ptrdiff_t>(i) + 1);
      }
    }
  }
  return result;
}

Tokenizer train(const std::vector<std::string>& documents, int vocab_size) {
  BpeTrainer trainer({.vocab_size = vocab_size});
  for (const std::string& document : documents) trainer.feed(document);
  return trainer.train();
}

Merges merges_of(const Tokenizer& tokenizer) {
  Merges merges;
  const auto json = nlohmann::json::parse(tokenizer.to_json());
  for (const std::string merge : json["model"]["merges"]) {
    const size_t space = merge.find(' ');
    merges.push_back(*symbols_to_bytes(merge.substr(0, space)) + " " +
                     *symbols_to_bytes(merge.substr(space + 1)));
  }
  return merges;
}

TEST(BpeTrainer, HandWorked) {
  // "a b" is there 3 times. Then " ab" and "ab c" twice each: the space has the smaller id.
  const Tokenizer tokenizer = train({"abc ab abc"}, 257 + 3);
  EXPECT_EQ(merges_of(tokenizer), (Merges{"a b", "  ab", "ab c"}));
  EXPECT_EQ(tokenizer.vocab_size(), 260);
  EXPECT_EQ(tokenizer.encode("<|endoftext|>abc"), (std::vector<int32_t>{0, 259}));
  EXPECT_EQ(tokenizer.end_of_document(), 0);
}

TEST(BpeTrainer, EqualsBruteForce) {
  std::mt19937 random(7);
  size_t compared = 0;
  for (int round = 0; round < 40; ++round) {
    std::vector<std::string> documents(3);
    const std::string alphabet = round % 2 ? "aab \n" : "abcdefgh i'1";
    for (std::string& document : documents) {
      for (int i = 0; i < 400; ++i) document.push_back(alphabet[random() % alphabet.size()]);
    }
    const BruteForce expected = brute_force(documents, 60);
    Merges merges = merges_of(train(documents, 257 + 60));
    if (expected.product_twice) {
      ASSERT_GE(merges.size(), expected.merges.size());
      merges.resize(expected.merges.size());
    }
    EXPECT_EQ(merges, expected.merges) << round;
    compared += merges.size();
  }
  EXPECT_GT(compared, 1000u);
}

TEST(BpeTrainer, StopsWhenNothingIsLeft) {
  const Tokenizer tokenizer = train({"aaaa", "", "b"}, 1000);
  EXPECT_EQ(merges_of(tokenizer), (Merges{"a a", "aa aa"}));
}

TEST(BpeTrainer, CountsDocumentsNotLines) {
  BpeTrainer trainer({.vocab_size = 300});
  trainer.feed("a  b");
  trainer.feed("a  b");
  EXPECT_EQ(trainer.num_distinct_pieces(), 3);  // "a", " ", " b"
  EXPECT_EQ(trainer.num_bytes(), 8);
}

TEST(BpeTrainer, Refuses) {
  EXPECT_THROW(BpeTrainer({.vocab_size = 256}), UsageError);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {"x", "x"}}), UsageError);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {""}}), UsageError);
  BpeTrainer trainer({.vocab_size = 300});
  EXPECT_THROW(trainer.feed("ab\xff"), DataError);
}

TEST(BpeTrainer, Cl100kPattern) {
  BpeTrainer trainer({.vocab_size = 270, .pattern = SplitPattern::cl100k});
  trainer.feed("12345 12345 12345");
  const Tokenizer tokenizer = trainer.train();
  EXPECT_EQ(merges_of(tokenizer), (Merges{"1 2", "4 5", "12 3"}));  // never across three digits
  const Tokenizer again = Tokenizer::from_json(tokenizer.to_json());
  EXPECT_EQ(again.encode("12345"), tokenizer.encode("12345"));
  EXPECT_EQ(again.encode("12345").size(), 2u);
}

}  // namespace
}  // namespace transxssm
