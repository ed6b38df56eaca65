#include "launch/commands/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

class DataCommand : public testing::Test {
 protected:
  int run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "data");
    testing::internal::CaptureStdout();
    int code = -1;
    error_.clear();
    try {
      code = run_program({.name = "transxssm", .summary = "", .version = "", .commands = data_commands()},
                         arguments);
    } catch (const Error& error) {
      code = static_cast<int>(error.code());
      error_ = error.what();
    }
    output_ = testing::internal::GetCapturedStdout();
    return code;
  }
  TemporaryDirectory directory_;
  std::string output_, error_;
};

TEST_F(DataCommand, FromTextToTokensAndBack) {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "The " + std::to_string(i) + " words of a document.\nIts second line.\n\n";
  ASSERT_EQ(text.size(), 18690u);
  const std::string input = directory_.write("text", text), tokenizer_path = directory_ / "tokenizer.json";
  ASSERT_EQ(run({"train-tokenizer", "--input", input, "--vocab-size", "300", "--output", tokenizer_path}), 0)
      << error_;
  EXPECT_THAT(output_, HasSubstr("300 tokens, from 18.7 kB of text"));
  EXPECT_EQ(run({"train-tokenizer", "--input", input, "--vocab-size", "300", "--output", tokenizer_path}), 2);
  EXPECT_THAT(error_, HasSubstr("--overwrite"));

  const std::string prefix = directory_ / "set";
  ASSERT_EQ(run({"tokenize", "--input", input, "--separator", "\\n\\n", "--tokenizer", tokenizer_path,
                 "--append-eod", "--output", prefix}),
            0)
      << error_;
  EXPECT_THAT(output_, HasSubstr("400 documents"));
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
  const TokenFile file(prefix);
  ASSERT_EQ(file.num_documents(), 400);
  std::string joined;
  for (int64_t d = 0; d < 400; ++d) {
    std::vector<int32_t> ids(static_cast<size_t>(file.document_begin(d + 1) - file.document_begin(d)));
    file.read(file.document_begin(d), static_cast<int64_t>(ids.size()), ids.data());
    EXPECT_EQ(ids.back(), *tokenizer.end_of_document());
    ids.pop_back();
    joined += tokenizer.decode(ids) + "\n\n";
  }
  EXPECT_EQ(joined, text);
  ASSERT_TRUE(file.facts());
  EXPECT_EQ(file.facts()->text_bytes, static_cast<int64_t>(text.size()) - 800);
  EXPECT_EQ(file.facts()->end_of_document, *tokenizer.end_of_document());

  ASSERT_EQ(run({"inspect", prefix, "--rows", "1"}), 0) << error_;
  EXPECT_THAT(output_, testing::AllOf(HasSubstr("400"), HasSubstr("u16"),
                                      HasSubstr("The 0 words of a document.\\nIts second line.")));
  // The same text as JSONL gives the same files.
  std::string json;
  for (int i = 0; i < 400; ++i)
    json += "{\"t\": \"The " + std::to_string(i) + " words of a document.\\nIts second line.\"}\n";
  ASSERT_EQ(run({"tokenize", "--input", directory_.write("a.jsonl", json), "--field", "t", "--tokenizer",
                 tokenizer_path, "--append-eod", "--threads", "1", "--output", directory_ / "json"}),
            0)
      << error_;
  for (const char* suffix : {".bin", ".idx"})
    EXPECT_EQ(TemporaryDirectory::read(directory_ / "json" + suffix),
              TemporaryDirectory::read(prefix + suffix));
}

TEST_F(DataCommand, AFailureLeavesNothingBehind) {
  const std::string tokenizer = directory_ / "tokenizer.json";
  ASSERT_EQ(run({"train-tokenizer", "--input", directory_.write("good", "a few words of text"),
                 "--vocab-size", "260", "--output", tokenizer}),
            0);
  const std::string bad = directory_.write("bad", std::string(9 << 20, ' ') + "abc\x92");
  EXPECT_EQ(run({"tokenize", "--input", bad, "--tokenizer", tokenizer, "--output", directory_ / "set"}), 3);
  EXPECT_THAT(error_, HasSubstr("byte 9437187 (0x92)"));
  EXPECT_EQ(run({"tokenize", "--input", directory_.write("none", ""), "--tokenizer", tokenizer, "--output",
                 directory_ / "set"}),
            3);
  EXPECT_THAT(error_, HasSubstr("no text"));
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
    EXPECT_NE(entry.path().filename().string().substr(0, 3), "set");
  EXPECT_EQ(run({"inspect", directory_ / "set"}), 3);
  EXPECT_EQ(run({"tokenize", "--output", "x"}), 2);
}

}  // namespace
}  // namespace transxssm
