#include "runtime/data/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using Documents = std::vector<std::vector<std::vector<int32_t>>>;  // documents of sequences of ids

void write(const std::string& prefix, int64_t vocab_size, const Documents& documents,
           TokenFileFacts facts = {}) {
  TokenFileWriter writer(posix_file_system(), prefix, vocab_size, true);
  for (const auto& document : documents) {
    for (const auto& sequence : document) {
      writer.add_tokens(sequence);
      writer.end_sequence();
    }
    writer.end_document();
  }
  writer.finish(facts);
}

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// .idx from the definition of the format, with none of the writer's code.
std::string index_bytes(const Documents& documents, uint8_t dtype, int64_t token_bytes) {
  std::vector<int32_t> lengths;
  std::vector<int64_t> boundaries = {0};
  for (const auto& document : documents) {
    for (const auto& sequence : document) lengths.push_back(static_cast<int32_t>(sequence.size()));
    boundaries.push_back(static_cast<int64_t>(lengths.size()));
  }
  std::string bytes("MMIDIDX\0\0", 9);
  append<uint64_t>(bytes, 1);
  append<uint8_t>(bytes, dtype);
  append<uint64_t>(bytes, lengths.size());
  append<uint64_t>(bytes, boundaries.size());
  for (const int32_t length : lengths) append(bytes, length);
  int64_t offset = 0;
  for (const int32_t length : lengths) {
    append(bytes, offset);
    offset += length * token_bytes;
  }
  for (const int64_t boundary : boundaries) append(bytes, boundary);
  return bytes;
}

template <class T>
std::string token_bytes(const Documents& documents) {
  std::string bytes;
  for (const auto& document : documents)
    for (const auto& sequence : document)
      for (const int32_t id : sequence) append(bytes, static_cast<T>(id));
  return bytes;
}

// An empty document, an empty sequence, several sequences, a document longer than the writer's blocks.
Documents sample_documents(int32_t largest) {
  std::vector<int32_t> many(10000);
  std::iota(many.begin(), many.end(), 100);
  return {{{1, 2, 3}}, {}, {{4}, {}, {5, largest}}, {many}, {{}}, {{0, 7}}};
}

std::string error_of(const std::string& prefix) {
  try {
    const TokenFile file(prefix);
  } catch (const DataError& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    return error.what();
  }
  return "";
}

TEST(TokenFile, BytesFollowTheFormat) {
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set";
  write(prefix, 65499, sample_documents(65498));
  EXPECT_EQ(TemporaryDirectory::read(prefix + ".idx"), index_bytes(sample_documents(65498), 8, 2));
  EXPECT_EQ(TemporaryDirectory::read(prefix + ".bin"), token_bytes<uint16_t>(sample_documents(65498)));
  write(prefix, 65500, sample_documents(65499));
  EXPECT_EQ(TemporaryDirectory::read(prefix + ".idx"), index_bytes(sample_documents(65499), 4, 4));
  EXPECT_EQ(TemporaryDirectory::read(prefix + ".bin"), token_bytes<int32_t>(sample_documents(65499)));
  write(prefix, 10, {});
  EXPECT_EQ(TemporaryDirectory::read(prefix + ".idx"), index_bytes({}, 8, 2));
}

TEST(TokenFile, ReadsBackTokensAndDocuments) {
  const TemporaryDirectory directory;
  for (const int64_t vocab_size : {65000, 100000}) {
    const std::string prefix = directory / std::to_string(vocab_size);
    write(prefix, vocab_size, sample_documents(64999),
          {.text_bytes = 77, .end_of_document = 5, .tokenizer = "t"});
    const TokenFile file(prefix);
    std::vector<int32_t> expected;
    std::vector<int64_t> begins = {0};
    for (const auto& document : sample_documents(64999)) {
      for (const auto& sequence : document) expected.insert(expected.end(), sequence.begin(), sequence.end());
      begins.push_back(static_cast<int64_t>(expected.size()));
    }
    ASSERT_EQ(file.num_tokens(), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(file.num_documents(), 6);
    EXPECT_EQ(file.num_sequences(), 7);
    EXPECT_EQ(file.token_bytes(), vocab_size == 65000 ? 2 : 4);
    std::vector<int32_t> actual(expected.size());
    file.read(0, file.num_tokens(), actual.data());
    EXPECT_EQ(actual, expected);
    file.read(2, 3, actual.data());
    EXPECT_THAT(std::span(actual).first(3), testing::ElementsAre(3, 4, 5));
    for (int64_t d = 0; d <= 6; ++d) EXPECT_EQ(file.document_begin(d), begins[static_cast<size_t>(d)]);
    // Empty documents hold no token.
    for (const auto& [token, document] :
         {std::pair{0, 0}, {2, 0}, {3, 2}, {5, 2}, {6, 3}, {10005, 3}, {10006, 5}})
      EXPECT_EQ(file.document_of(token), document) << token;
    EXPECT_EQ(file.scan_ids(0, file.num_tokens()).high, 64999);
    ASSERT_TRUE(file.facts());
    EXPECT_EQ(file.facts()->max_token_id, 64999);
    EXPECT_EQ(file.facts()->text_bytes, 77);
    EXPECT_EQ(file.facts()->end_of_document, 5);
    EXPECT_EQ(file.facts()->vocab_size, vocab_size);
  }
}

TEST(TokenFile, ASequenceIsNotLeftOpenByADocument) {
  const TemporaryDirectory directory;
  TokenFileWriter writer(posix_file_system(), directory / "set", 100, false);
  for (int i = 0; i < 3; ++i) {
    writer.add_tokens(std::vector<int32_t>{i});
    writer.add_tokens(std::vector<int32_t>{i + 10});
    writer.end_document();
  }
  writer.finish({});
  EXPECT_EQ(TemporaryDirectory::read(directory / "set.idx"),
            index_bytes({{{0, 10}}, {{1, 11}}, {{2, 12}}}, 8, 2));
}

TEST(TokenFile, AppearsWholeOrNotAtAll) {
  const TemporaryDirectory directory;
  const auto names = [&] {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
      found.push_back(entry.path().filename());
    std::sort(found.begin(), found.end());
    return found;
  };
  {
    TokenFileWriter writer(posix_file_system(), directory / "set", 100, false);
    writer.add_tokens(std::vector<int32_t>(100000, 1));
    EXPECT_FALSE(std::filesystem::exists(directory / "set.bin"));
    EXPECT_FALSE(std::filesystem::exists(directory / "set.idx"));
  }
  EXPECT_THAT(names(), testing::IsEmpty());
  // What a killed run leaves does not stand in the way.
  directory.write(".set.bin." + host_name() + "-1-0.tmp", "rest");
  write(directory / "set", 100, {{{1}}});
  EXPECT_THAT(names(), testing::ElementsAre("set.bin", "set.idx", "set.json"));
  EXPECT_THROW(TokenFileWriter(posix_file_system(), directory / "set", 100, false), UsageError);
  EXPECT_EQ(TokenFile(directory / "set").num_tokens(), 1);
}

TEST(TokenFile, RefusesIdsOutsideTheVocabulary) {
  const TemporaryDirectory directory;
  TokenFileWriter writer(posix_file_system(), directory / "x", 100, false);
  EXPECT_THROW(writer.add_tokens(std::vector<int32_t>{100}), DataError);
  EXPECT_THROW(writer.add_tokens(std::vector<int32_t>{-1}), DataError);

  for (const int64_t vocab_size : {1000, 100000}) {
    std::vector<int32_t> ids(9000, 3);
    ids[8500] = 999;
    write(directory / "set", vocab_size, {{{1, 2}}, {}, {ids}});
    const TokenFile file(directory / "set");
    EXPECT_NO_THROW(file.check_vocabulary(1000));
    try {
      file.check_vocabulary(999);
      ADD_FAILURE() << "not refused";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("set.bin: token 8500 of document 2"),
                                               testing::HasSubstr("id 999"), testing::HasSubstr("of 999;")));
    }
  }
  // A negative id can only come from elsewhere.
  std::string bin = TemporaryDirectory::read(directory / "set.bin");
  std::memset(bin.data() + 8, 0xFF, 4);
  directory.write("set.bin", bin);
  EXPECT_THROW(TokenFile(directory / "set").check_vocabulary(100000), DataError);
}

TEST(TokenFile, RefusesEveryFlippedByteOfTheIndex) {
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set";
  const Documents documents = {{{1, 2, 3}}, {}, {{4}, {5, 6}}};
  for (const int64_t vocab_size : {100, 100000}) {
    write(prefix, vocab_size, documents);
    const std::string good = TemporaryDirectory::read(prefix + ".idx");
    int accepted = 0;
    const size_t end = vocab_size == 100 ? good.size() : 34;
    for (size_t i = 0; i < end; ++i) {
      for (const int mask : {1, 128, 255}) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ mask);
        directory.write("set.idx", bad);
        const std::string message = error_of(prefix);
        if (message.empty()) {
          // Only another cut into documents can be legal; the facts then no longer fit.
          ++accepted;
          EXPECT_GE(i, good.size() - 4 * 8) << "byte " << i << " mask " << mask;
          EXPECT_FALSE(TokenFile(prefix).facts());
        } else {
          EXPECT_THAT(message, testing::AllOf(testing::HasSubstr("set"), testing::HasSubstr("expected")));
        }
      }
    }
    EXPECT_LT(accepted, 8);
  }
}

TEST(TokenFile, RefusesEveryTruncation) {
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set";
  write(prefix, 100, {{{1, 2, 3}}, {{4}, {5, 6}}});
  for (const char* suffix : {".idx", ".bin"}) {
    const std::string good = TemporaryDirectory::read(prefix + suffix);
    for (size_t bytes = 0; bytes < good.size(); ++bytes) {
      std::ofstream(prefix + suffix, std::ios::binary) << good.substr(0, bytes);
      EXPECT_THAT(error_of(prefix), testing::HasSubstr("expected")) << suffix << bytes;
    }
    std::ofstream(prefix + suffix, std::ios::binary) << good << "x";
    EXPECT_NE(error_of(prefix), "");
    std::ofstream(prefix + suffix, std::ios::binary) << good;
    EXPECT_EQ(error_of(prefix), "");
  }
}

TEST(TokenFile, NamesTheFieldThatIsWrong) {
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set";
  write(prefix, 100, {{{1, 2, 3}}, {{4}, {5, 6}}});
  const std::string good = TemporaryDirectory::read(prefix + ".idx");
  const auto with = [&](size_t at, const auto& value) {
    std::string bad = good;
    std::memcpy(bad.data() + at, &value, sizeof value);
    directory.write("set.idx", bad);
    return error_of(prefix);
  };
  using testing::HasSubstr;
  EXPECT_THAT(with(0, 'X'), HasSubstr("magic"));
  EXPECT_THAT(with(9, uint64_t{2}), HasSubstr("version is 2, expected 1"));
  EXPECT_THAT(with(17, uint8_t{9}),
              HasSubstr("dtype is 9, expected 1 (u8), 2 (i8), 3 (i16), 4 (i32), 5 (i64) or 8 (u16)"));
  // Counts whose products overflow 64 bits.
  EXPECT_THAT(with(18, ~uint64_t{0} / 4), HasSubstr("sequence count"));
  EXPECT_THAT(with(26, uint64_t{1} << 61), HasSubstr("document count"));
  EXPECT_THAT(with(34, int32_t{-3}), HasSubstr("length of sequence 0 is -3"));
  EXPECT_THAT(with(34 + 12 + 8, int64_t{2}), HasSubstr("offset of sequence 1 is 2, expected 6"));
  EXPECT_THAT(with(34 + 36 + 8, int64_t{5}), HasSubstr("start of document 1 is 5, expected 0 to 3"));
  EXPECT_THAT(with(34 + 36 + 16, int64_t{2}), HasSubstr("end of the last document is 2, expected 3"));
  EXPECT_THAT(error_of(directory / "none"), HasSubstr("none.idx"));
}

TEST(TokenFile, ForgetsFactsOfAnotherDataset) {
  const TemporaryDirectory directory;
  write(directory / "a", 100, {{{1, 2}}});
  write(directory / "b", 100, {{{1}, {2}}});
  std::filesystem::copy_file(directory / "a.json", directory / "b.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_FALSE(TokenFile(directory / "b").facts());
  directory.write("a.json", "{");
  EXPECT_FALSE(TokenFile(directory / "a").facts());
  std::filesystem::remove(directory / "a.json");
  EXPECT_EQ(TokenFile(directory / "a").num_tokens(), 2);
}

}  // namespace
}  // namespace transxssm
