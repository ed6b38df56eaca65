#include "runtime/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace transxssm {
namespace {

namespace fs = std::filesystem;

// Bitwise CRC-32C, apart from the one under test.
uint32_t slow_masked_crc(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
  }
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <class T>
T take(std::string_view& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}

// The records of a file, with both checksums of each verified.
std::vector<std::string> records(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  const std::string file = text.str();
  std::string_view rest = file;
  std::vector<std::string> out;
  while (!rest.empty()) {
    const std::string_view length_bytes = rest.substr(0, 8);
    const auto length = take<uint64_t>(rest);
    EXPECT_EQ(take<uint32_t>(rest), slow_masked_crc(length_bytes));
    const std::string_view data = rest.substr(0, length);
    rest.remove_prefix(length);
    EXPECT_EQ(take<uint32_t>(rest), slow_masked_crc(data));
    out.emplace_back(data);
  }
  return out;
}

class TensorBoardTest : public testing::Test {
 protected:
  TensorBoardTest()
      : directory_(testing::TempDir() + "events_" +
                   testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  ~TensorBoardTest() override { fs::remove_all(directory_); }
  const std::string directory_;
};

TEST_F(TensorBoardTest, WritesEventsByteForByte) {
  EventWriter writer(directory_, 41);
  EXPECT_TRUE(writer.scalar("train/loss", 300, 1.5, 2.0));
  const auto found = records(writer.path());
  ASSERT_EQ(found.size(), 3u);
  // Each begins with wall_time (field 1, fixed64); then step (field 2), then the contents.
  EXPECT_EQ(found[0].substr(9), std::string("\x10\x00\x1a\x0d", 4) + "brain.Event:2");
  EXPECT_EQ(found[1].substr(9),
            std::string("\x10\x29\x3a\x02\x08\x01"));  // step 41, session_log {status: START}
  EXPECT_EQ(found[2], std::string("\x09\x00\x00\x00\x00\x00\x00\x00\x40"  // wall_time 2.0
                                  "\x10\xac\x02"                          // step 300
                                  "\x2a\x13\x0a\x11\x0a\x0a"              // summary {value {tag
                                  "train/loss"
                                  "\x15\x00\x00\xc0\x3f",  // simple_value 1.5
                                  9 + 3 + 6 + 10 + 5));
}

TEST_F(TensorBoardTest, NeverGoesBackInATag) {
  EventWriter writer(directory_, 1);
  for (const int64_t step : {1, 2, 2, 1, 3}) EXPECT_TRUE(writer.scalar("a", step, 0, 0));
  EXPECT_TRUE(writer.scalar("b", 1, 0, 0));
  EXPECT_EQ(records(writer.path()).size(), 2u + 3u + 1u);
}

TEST_F(TensorBoardTest, ALaterStartSortsLater) {
  std::vector<std::string> names;
  std::ofstream(directory_ + "/events.out.tfevents.9000000000.000000.ahead");  // a clock that ran ahead
  for (int64_t start = 0; start < 3; ++start) names.push_back(EventWriter(directory_, start).path());
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 4);
  EXPECT_GT(names[0], directory_ + "/events.out.tfevents.9000000000.000000.ahead");
}

TEST_F(TensorBoardTest, SaysWhatWentWrong) {
  EventWriter writer(directory_ + "/missing", 1);
  EXPECT_FALSE(writer.scalar("a", 1, 0, 0));
  EXPECT_FALSE(writer.error().empty());
}

}  // namespace
}  // namespace transxssm
