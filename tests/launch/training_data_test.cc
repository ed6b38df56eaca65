// The token files of a configuration: opened together by all ranks, checked once, refused where they do not
// belong together or to the tokenizer.
#include "launch/training_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "parallel/local.h"
#include "runtime/data/bpe_trainer.h"
#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Tokenizer make_tokenizer(int vocab_size, SplitPattern pattern = SplitPattern::gpt2) {
  BpeTrainerOptions options;
  options.vocab_size = vocab_size;
  options.special_tokens = {"<|endoftext|>"};
  options.pattern = pattern;
  BpeTrainer trainer(options);
  trainer.feed("the cat sat on the mat, the dog on the log, 12345 and 678\n\n  they'll go ");
  return trainer.train([](int, int) {});
}

class DataFilesTest : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& tokenizer_digest, int32_t id = 7,
             int32_t end_of_document = -1) {
    TokenFileWriter writer(posix_file_system(), directory_ / name, 300, true);
    for (int d = 0; d < 10; ++d) {
      writer.add_tokens(std::vector<int32_t>(20, id));
      writer.end_document();
    }
    writer.finish({.end_of_document = end_of_document,
                   .tokenizer = name + "-made-by.json",
                   .tokenizer_digest = tokenizer_digest});
  }
  TrainConfig config(const std::vector<std::string>& names, const std::string& more = "") {
    directory_.write("given.json", "{}");
    std::string sources;
    for (const std::string& name : names)
      sources += fmt::format("train {{ prefix: '{}' }} ", directory_ / name);
    return parse_config(
        fmt::format(
            "model {{ vocab_size: 300 d_model: 16 num_layers: 1 num_heads: 2 d_ff: 32 d_state: 8 chunk: 8 "
            "attn_period: 2 attn_offset: 1 }} data {{ {} sequence_length: 8 tokenizer: '{}' {} }} "
            "schedule {{ steps: 10 }} log {{ run_directory: '{}' }}",
            sources, directory_ / "given.json", more, directory_ / "run"),
        "test", {}, 0);
  }
  // What the lowest rank that fails says; "" where all files were opened.
  std::string refusal(const TrainConfig& c, const Tokenizer* tokenizer) {
    try {
      const DataFiles files(c, *single_rank(), tokenizer);
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  }
  TemporaryDirectory directory_;
};

TEST_F(DataFilesTest, RefusesTheTokenizerOfOtherData) {
  const Tokenizer ours = make_tokenizer(280), small = make_tokenizer(270),
                  other = make_tokenizer(280, SplitPattern::cl100k);
  write("a", ours.digest());
  write("b", ours.digest());
  EXPECT_EQ(refusal(config({"a", "b"}), &ours), "");
  EXPECT_EQ(refusal(config({"a", "b"}), nullptr), "");
  for (const Tokenizer* wrong : {&small, &other}) {
    const std::string said = refusal(config({"a"}), wrong);
    EXPECT_THAT(said, AllOf(HasSubstr(directory_ / "a"), HasSubstr("a-made-by.json"),
                            HasSubstr(ours.digest()), HasSubstr("given.json"), HasSubstr(wrong->digest())));
  }
  // Every source and the validation file; also where no tokenizer is given.
  write("c", other.digest());
  EXPECT_THAT(refusal(config({"a", "c"}), &ours), HasSubstr("c-made-by.json"));
  EXPECT_THAT(refusal(config({"a"}, fmt::format("validation: '{}'", directory_ / "c")), &ours),
              HasSubstr("c-made-by.json"));
  EXPECT_THAT(refusal(config({"a", "c"}), nullptr),
              AllOf(HasSubstr("a-made-by.json"), HasSubstr("c-made-by.json"), HasSubstr(other.digest())));
  // A dataset that does not say is taken, as are two that do and one that does not.
  write("d", "");
  EXPECT_EQ(refusal(config({"a", "d"}), &ours), "");
  std::filesystem::remove(directory_ / "d.json");
  EXPECT_EQ(refusal(config({"a", "d"}), &ours), "");
}

TEST_F(DataFilesTest, AFileIsOpenedOnceForAllUses) {
  write("a", "");
  const TrainConfig c = config({"a"});
  const DataFiles files(c, *single_rank(), nullptr);
  const TrainingData training = open_training_data(c, files);
  const auto validation = open_validation_set(c, files, nullptr);
  ASSERT_TRUE(validation);
  EXPECT_EQ(files.at(directory_ / "a").use_count(), 4);  // of the map, training, validation, and this one
}

TEST_F(DataFilesTest, OneRankOfAHostChecksForAll) {
  write("a", "00");
  write("b", "00", 299);
  const TrainConfig c = config({"a", "b"});
  std::vector<uint64_t> digests(4);
  std::vector<int> has_facts(4);
  run_as_ranks(4, [&](Communicator& world) {
    const DataFiles files(c, world, nullptr);
    const auto rank = static_cast<size_t>(world.rank());
    has_facts[rank] = files.at(directory_ / "b")->facts().has_value();
    digests[rank] = open_training_data(c, files).digest();
  });
  EXPECT_THAT(has_facts, testing::ElementsAre(1, 0, 0, 0));  // the others read no more than the header
  EXPECT_THAT(digests, testing::Each(digests[0]));
}

// On every rank: what it predicts first must not depend on who read PREFIX.json.
TEST_F(DataFilesTest, ValidationBeginsWithTheIdThatEndsTheDocumentsOfItsData) {
  const Tokenizer tokenizer = make_tokenizer(280);
  ASSERT_NE(tokenizer.end_of_document().value_or(0), 11);
  write("says", tokenizer.digest(), 7, 11);
  write("says-not", tokenizer.digest());
  const auto first_input = [&](Communicator& world, const std::string& name) {
    const TrainConfig c = config({name}, fmt::format("validation: '{}'", directory_ / name));
    const DataFiles files(c, world, &tokenizer);
    Carver counting;
    Batch::carve(counting, 1, 8);
    const Arena memory(counting.used());
    Carver carver = memory.carver();
    const Batch row = Batch::carve(carver, 1, 8);
    open_validation_set(c, files, &tokenizer)->fill(0, 0, row, 0);
    return row.input.at<int32_t>({0, 0});
  };
  run_as_ranks(2, [&](Communicator& world) {
    EXPECT_EQ(first_input(world, "says"), 11);
    EXPECT_EQ(first_input(world, "says-not"), tokenizer.end_of_document().value_or(0));
  });
  write("outside", tokenizer.digest(), 7, 299);
  TrainConfig c = config({"outside"});
  c.mutable_model()->set_vocab_size(290);
  const DataFiles files(c, *single_rank(), &tokenizer);
  try {
    open_validation_set(c, files, &tokenizer);
    ADD_FAILURE() << "taken";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("outside.json"), HasSubstr("id 299"), HasSubstr("of 290")));
  }
}

TEST_F(DataFilesTest, NamesIdsOutsideTheVocabulary) {
  write("a", "", 299);
  TrainConfig c = config({"a"});
  c.mutable_model()->set_vocab_size(299);
  EXPECT_THAT(refusal(c, nullptr), HasSubstr("token 0 of document 0 (token 0 of the file) has id 299"));
}

TEST(TokenizerDigest, IsOfWhatDecidesIdsAlone) {
  const Tokenizer tokenizer = make_tokenizer(280);
  EXPECT_EQ(tokenizer.digest().size(), 16u);
  EXPECT_EQ(tokenizer.digest(), make_tokenizer(280).digest());
  EXPECT_NE(tokenizer.digest(), make_tokenizer(279).digest());
  EXPECT_NE(tokenizer.digest(), make_tokenizer(280, SplitPattern::cl100k).digest());
  const std::string json = tokenizer.to_json();
  const auto digest_with = [&](const std::string& from, const std::string& to) {
    std::string text = json;
    EXPECT_THAT(text, HasSubstr(from));
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
      text.replace(at, from.size(), to);
    return Tokenizer::from_json(text).digest();
  };
  // Another layout of the same.
  std::string dense;
  for (const char c : json)
    if (c != '\n') dense += c;
  EXPECT_EQ(Tokenizer::from_json(dense).digest(), tokenizer.digest());
  EXPECT_EQ(digest_with("\"special\": true", "\"special\": false"), tokenizer.digest());
  EXPECT_NE(digest_with("\"normalized\": false", "\"normalized\": true"), tokenizer.digest());
  EXPECT_NE(digest_with("<|endoftext|>", "<|endoftexx|>"), tokenizer.digest());
}

}  // namespace
}  // namespace transxssm
