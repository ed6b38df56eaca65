// Token files as others make them: every integer type, empty documents, large indices, and what may stand
// beside them as PREFIX.json.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"
#include "runtime/error.h"
#include "runtime/sanitizers.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Documents of one sequence each, from the definition of the format.
template <class T>
void write_foreign(const TemporaryDirectory& directory, const std::string& name, uint8_t dtype,
                   const std::vector<std::vector<T>>& documents) {
  std::string bin, lengths, offsets, starts;
  for (size_t d = 0; d < documents.size(); ++d) {
    append(lengths, static_cast<int32_t>(documents[d].size()));
    append(offsets, static_cast<int64_t>(bin.size()));
    append(starts, static_cast<int64_t>(d));
    for (const T id : documents[d]) append(bin, id);
  }
  append(starts, static_cast<int64_t>(documents.size()));
  std::string idx("MMIDIDX\0\0", 9);
  append(idx, uint64_t{1});
  append(idx, dtype);
  append(idx, static_cast<uint64_t>(documents.size()));
  append(idx, static_cast<uint64_t>(documents.size() + 1));
  directory.write(name + ".idx", idx + lengths + offsets + starts);
  directory.write(name + ".bin", bin);
}

template <class Fn>
std::string data_error(Fn&& fn) {
  try {
    fn();
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

template <class T>
void expect_reads(uint8_t dtype, const char* name, std::vector<T> ids) {
  const TemporaryDirectory directory;
  write_foreign<T>(directory, "set", dtype, {ids, {}, ids});
  const TokenFile file(directory / "set");
  EXPECT_EQ(file.token_type_name(), name);
  EXPECT_EQ(file.num_tokens(), 2 * static_cast<int64_t>(ids.size()));
  std::vector<int32_t> read(ids.size());
  file.read(static_cast<int64_t>(ids.size()), static_cast<int64_t>(ids.size()), read.data());
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(read[i], static_cast<int32_t>(ids[i])) << name;
    EXPECT_EQ(file.token(static_cast<int64_t>(i)), static_cast<int32_t>(ids[i])) << name;
  }
  const auto largest = *std::max_element(ids.begin(), ids.end());
  EXPECT_EQ(file.scan_ids(0, file.num_tokens()).high, static_cast<int64_t>(largest));
  EXPECT_NO_THROW(file.check_vocabulary(static_cast<int64_t>(largest) + 1));
  EXPECT_THAT(data_error([&] { file.check_vocabulary(static_cast<int64_t>(largest)); }),
              HasSubstr(fmt::format("has id {}, outside", static_cast<int64_t>(largest))));
}

TEST(TokenFile, ReadsEveryIntegerType) {
  expect_reads<uint8_t>(1, "u8", {0, 200, 255, 7});
  expect_reads<int8_t>(2, "i8", {0, 100, 127});
  expect_reads<int16_t>(3, "i16", {1, 32767, 300});
  expect_reads<int32_t>(4, "i32", {70000, 2147483647 - 1, 0});
  expect_reads<int64_t>(5, "i64", {3, 2147483647 - 1, 90000});
  expect_reads<uint16_t>(8, "u16", {65535, 1});
  for (const uint8_t dtype : {6, 7}) {
    const TemporaryDirectory directory;
    write_foreign<float>(directory, "set", dtype, {{1, 2}});
    EXPECT_THAT(data_error([&] { TokenFile file(directory / "set"); }),
                testing::AllOf(HasSubstr("set.idx: dtype is"), HasSubstr("floating point")));
  }
}

TEST(TokenFile, NamesIdsThatNoVocabularyHas) {
  const TemporaryDirectory directory;
  const auto refusal = [&](const char* name) {
    const TokenFile file(directory / name);
    return data_error([&] { file.check_vocabulary(int64_t{1} << 31); });
  };
  write_foreign<int64_t>(directory, "large", 5, {{1, 2}, {}, {5, (int64_t{1} << 32) + 7}});
  EXPECT_THAT(refusal("large"), HasSubstr("token 1 of document 2 (token 3 of the file) has id 4294967303,"));
  EXPECT_EQ(TokenFile(directory / "large").token(3), -1);  // never id 7
  write_foreign<int64_t>(directory, "low", 5, {{1}, {std::numeric_limits<int64_t>::min()}});
  EXPECT_THAT(refusal("low"), HasSubstr("token 0 of document 1 (token 1 of the file) has id -922337203685"));
  EXPECT_EQ(TokenFile(directory / "low").token(1), -1);
  write_foreign<int8_t>(directory, "negative", 2, {{1, -3}});
  EXPECT_THAT(refusal("negative"), HasSubstr("token 1 of document 0 (token 1 of the file) has id -3,"));
}

class SideFile : public testing::Test {
 protected:
  SideFile() {
    TokenFileWriter writer(posix_file_system(), directory_ / "set", 300, false);
    for (int32_t d = 0; d < 3; ++d) {
      writer.add_tokens(std::vector<int32_t>{d, 299, 5});
      writer.end_document();
    }
    writer.finish({.text_bytes = 30, .end_of_document = 5, .tokenizer = "t", .tokenizer_digest = "00ff"});
    good_ = TemporaryDirectory::read(directory_ / "set.json");
  }
  // The good file with `from` in the place of `to`.
  std::string with(const std::string& from, const std::string& to) const {
    std::string text = good_;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
  TokenFile open() const { return TokenFile(directory_ / "set"); }
  TemporaryDirectory directory_;
  std::string good_;
};

TEST_F(SideFile, KeepsTheTokenizersDigest) {
  ASSERT_TRUE(open().facts());
  EXPECT_EQ(open().facts()->tokenizer_digest, "00ff");
  EXPECT_EQ(open().facts_problem(), "");
  // Datasets of before have none.
  directory_.write("set.json", with("\"tokenizer_digest\"", "\"something_else\""));
  ASSERT_TRUE(open().facts());
  EXPECT_EQ(open().facts()->tokenizer_digest, "");
}

TEST_F(SideFile, WhatCannotBeBelievedIsNotAndIsSaid) {
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"max_token_id\": 299", "\"max_token_id\": 1e300"},
           {"\"max_token_id\": 299", "\"max_token_id\": 299.0"},
           {"\"max_token_id\": 299", "\"max_token_id\": -2"},
           {"\"max_token_id\": 299", "\"max_token_id\": 4294967296"},
           {"\"max_token_id\": 299", "\"max_token_id\": 18446744073709551615"},
           {"\"vocab_size\": 300", "\"vocab_size\": \"300\""},
           {"\"vocab_size\": 300", "\"vocab_size\": -300"},
           {"\"end_of_document\": 5", "\"end_of_document\": null"},
           {"\"text_bytes\": 30", "\"text_bytes\": -1"},
           {"\"tokenizer\": \"t\"", "\"tokenizer\": [[[[[[[[[[[]]]]]]]]]]]"},
           {"\"tokenizer\": \"t\"", "\"tokenizer\": 7"},
           {"\"tokenizer_digest\": \"00ff\"", "\"tokenizer_digest\": \"\\u001b[31m\""},
           {"\"tokenizer_digest\": \"00ff\"", "\"tokenizer_digest\": 255"},
           {"\"tokens\": 9", "\"tokens\": 10"},
           {"\"tokens\": 9", "\"tokens\": 9.5"},
           {"\"documents\": 3", "\"documents\": true"},
           {"\"index_digest\": ", "\"index_digest\": 1"},
           {"\"index_digest\": ", "\"index_digest\": -"},
           {"{", "{{"}}) {
    directory_.write("set.json", with(from, to));
    const TokenFile file = open();
    EXPECT_FALSE(file.facts()) << to;
    EXPECT_THAT(file.facts_problem(), HasSubstr("set.json is not used: ")) << to;
    EXPECT_EQ(file.facts_problem().find('\x1b'), std::string::npos);
    EXPECT_EQ(file.num_tokens(), 9);
  }
}

TEST_F(SideFile, OfAnySizeKindOrDepthIsNoError) {
  const auto unused = [&](const char* why) {
    const TokenFile file = open();
    EXPECT_FALSE(file.facts()) << why;
    EXPECT_THAT(file.facts_problem(), HasSubstr("set.json is not used: ")) << why;
  };
  directory_.write("set.json", good_ + std::string(1 << 20, ' '));
  unused("large");
  std::string deep = "{\"index_digest\": ";
  for (int i = 0; i < 100000; ++i) deep += "[";
  directory_.write("set.json", deep);
  unused("deep");
  directory_.write("set.json", "");
  unused("empty");
  std::filesystem::remove(directory_ / "set.json");
  EXPECT_EQ(open().facts_problem(), "");
  std::filesystem::create_directory(directory_ / "set.json");
  unused("a directory");
  std::filesystem::remove(directory_ / "set.json");
  ASSERT_EQ(mkfifo((directory_ / "set.json").c_str(), 0600), 0);
  unused("a named pipe");
  std::filesystem::remove(directory_ / "set.json");
  // A file of somebody else, and a link to our own.
  directory_.write("set.json", "{\"title\": \"poems\"}");
  EXPECT_FALSE(open().facts());
  EXPECT_EQ(open().facts_problem(), "");
  directory_.write("elsewhere.json", good_);
  std::filesystem::remove(directory_ / "set.json");
  std::filesystem::create_symlink(directory_ / "elsewhere.json", directory_ / "set.json");
  EXPECT_TRUE(open().facts());
}

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// An index of empty documents, of one sequence each but the last: a file of holes.
void write_sparse(const std::string& prefix, int64_t documents) {
  std::ofstream idx(prefix + ".idx", std::ios::binary);
  std::string header("MMIDIDX\0\0", 9);
  append(header, uint64_t{1});
  append(header, uint8_t{8});
  append(header, static_cast<uint64_t>(documents));
  append(header, static_cast<uint64_t>(documents) + 1);
  // Lengths, offsets and starts are zeros; only the end of the last document is a number.
  idx << header;
  idx.seekp(34 + 20 * documents);
  std::string end;
  append(end, documents);
  idx << end;
  idx.close();
  std::ofstream(prefix + ".bin", std::ios::binary);
  ASSERT_TRUE(idx);
}

TEST(TokenFile, OpensAnIndexOfAHundredMillionDocumentsAtTheSpeedOfMemory) {
  constexpr double kLimit =
      4 * kSlower;  // seconds of CPU, the kernel's among them; a message formed for each takes 30
  const TemporaryDirectory directory;
  constexpr int64_t kDocuments = 100'000'000 / kSlower;
  write_sparse(directory / "set", kDocuments);
  // The least of two: the first also pays for the pages that the kernel, or a hypervisor behind it, finds for
  // the file.
  double seconds = kLimit;
  for (int i = 0; i < 2; ++i) {
    const double begin = cpu_seconds();
    const TokenFile opened(directory / "set");
    seconds = std::min(seconds, cpu_seconds() - begin);
    EXPECT_EQ(opened.num_documents(), kDocuments);
  }
  EXPECT_LT(seconds, kLimit);
  const TokenFile file(directory / "set");
  RecordProperty("cpu_seconds", std::to_string(seconds));
  // What others of this host need beyond the leader's checks.
  const double again = cpu_seconds();
  const TokenFile shared(directory / "set", file.summary());
  EXPECT_LT(cpu_seconds() - again, 0.05);
  EXPECT_EQ(shared.digest(), file.digest());
  EXPECT_EQ(shared.num_documents(), kDocuments);
}

TEST(TokenFile, RemembersTheRangeOfIdsOfALargeDatasetOfOthers) {
  const TemporaryDirectory directory;
  const std::string prefix = directory / "set", side = prefix + ".ids.json";
  constexpr int64_t kBytes = (int64_t{1} << 28) + 4;  // of holes: ids of 0
  // As one sequence of one document.
  std::string idx("MMIDIDX\0\0", 9);
  append(idx, uint64_t{1});
  append(idx, uint8_t{8});
  append(idx, uint64_t{1});
  append(idx, uint64_t{2});
  append(idx, static_cast<int32_t>(kBytes / 2));
  for (const int64_t value : {0, 0, 1}) append(idx, value);
  directory.write("set.idx", idx);
  directory.write("set.bin", "");
  std::filesystem::resize_file(prefix + ".bin", static_cast<uintmax_t>(kBytes));
  {
    const TokenFile file(prefix);
    EXPECT_FALSE(file.known_ids());
    file.remember_ids(file.scan_ids(0, file.num_tokens()));
    ASSERT_TRUE(file.known_ids());
    EXPECT_EQ(file.known_ids()->high, 0);
  }
  // Of a .bin that was written again, or by hand, nothing is known.
  const std::string good = TemporaryDirectory::read(side);
  {
    std::fstream bin(prefix + ".bin", std::ios::in | std::ios::out | std::ios::binary);
    bin.seekp(100);
    bin.put('\x07');
  }
  EXPECT_FALSE(TokenFile(prefix).known_ids());
  const TokenFile file(prefix);
  file.remember_ids(file.scan_ids(0, file.num_tokens()));
  EXPECT_EQ(file.known_ids()->high, 7);
  EXPECT_NE(TemporaryDirectory::read(side), good);
  for (const char* bad : {"", "{", "[]", "{\"format\": 3}"}) {
    directory.write("set.ids.json", bad);
    EXPECT_FALSE(file.known_ids()) << bad;
  }
  // What is not ours stays.
  file.remember_ids({0, 7});
  EXPECT_EQ(TemporaryDirectory::read(side), "{\"format\": 3}");
}

}  // namespace
}  // namespace transxssm
