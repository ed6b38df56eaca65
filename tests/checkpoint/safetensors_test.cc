#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transxssm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string with_length(const std::string& json, int64_t length = -1) {
  const auto bytes = length < 0 ? json.size() : static_cast<uint64_t>(length);
  std::string text;
  for (int i = 0; i < 8; ++i) text.push_back(static_cast<char>(bytes >> (8 * i)));
  return text + json;
}

TEST(Safetensors, RoundTrip) {
  const std::vector<SafetensorsEntry> entries{{"master/a.weight/0", DType::f64, {2, 3}, 0, 48},
                                              {"scalar", DType::f32, {}, 48, 52},
                                              {"empty", DType::f32, {0, 4}, 52, 52},
                                              {"halves", DType::bf16, {3}, 52, 58}};
  const std::string header = encode_safetensors_header(entries, 4096);
  EXPECT_EQ(header.size(), 4096u);
  EXPECT_EQ(header[8], '{');
  EXPECT_THAT(header, HasSubstr(R"("__metadata__":{"format":"pt"})"));
  EXPECT_EQ(safetensors_header_bytes(header.substr(0, 8), 4096 + 58, "f"), 4096);
  const auto read = parse_safetensors_header(header, 4096 + 58, "f");
  ASSERT_EQ(read.size(), entries.size());
  for (size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].key, entries[i].key);
    EXPECT_EQ(read[i].dtype, entries[i].dtype);
    EXPECT_EQ(read[i].shape, entries[i].shape);
    EXPECT_EQ(read[i].begin, entries[i].begin);
    EXPECT_EQ(read[i].end, entries[i].end);
  }
}

TEST(Safetensors, HostileHeadersAreRefusedInOneLine) {
  const auto refused = [](const std::string& json, int64_t data_bytes, const char* reason) {
    const std::string header = with_length(json);
    try {
      parse_safetensors_header(header, static_cast<int64_t>(header.size()) + data_bytes, "file.safetensors");
      ADD_FAILURE() << "accepted " << json.substr(0, 200);
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("file.safetensors"), HasSubstr(reason)));
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  };
  const auto entry = [](const std::string& shape, const std::string& offsets,
                        const std::string& dtype = "\"F32\"") {
    return "{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  refused("[]", 0, "{");
  refused(" {}", 0, "{");
  refused("{ ", 0, "not JSON");
  refused("{\"a\":NaN}", 0, "not JSON");
  refused("{} trailing", 0, "not JSON");
  refused("{\"a\":1}", 0, "must have dtype");
  refused("{\"a\":{}}", 0, "must have dtype");
  refused(entry("[1]", "[0,4]", "\"F31\""), 4, "dtype");
  refused(entry("[1]", "[0,4]", "7"), 4, "dtype");
  refused(entry("[2]", "[0,4]", "\"F16\""), 4, "dtype");  // not in a checkpoint
  refused(entry("[1]", "[4,0]"), 4, "data_offsets");
  refused(entry("[1]", "[0,-4]"), 4, "data_offsets");
  refused(entry("[1]", "[0,4.0]"), 4, "data_offsets");
  refused(entry("[1]", "[0]"), 4, "data_offsets");
  refused(entry("[1]", "[0,18446744073709551615]"), 4, "data_offsets");
  refused(entry("[-1]", "[0,4]"), 4, "whole number");
  refused(entry("[1e3]", "[0,4]"), 4, "whole number");
  refused(entry("[9223372036854775808]", "[0,4]"), 4, "whole number");
  // 2^32 x 2^32 elements would be none in 64 bits.
  refused(entry("[4294967296,4294967296]", "[0,0]"), 0, "too large");
  refused(entry("[4611686018427387904]", "[0,0]"), 0, "too large");
  refused(entry("[1,1,1,1,1,1]", "[0,4]"), 4, "dims");
  refused(entry("[2]", "[0,4]"), 4, "needs 8");
  refused(entry("[1]", "[0,4]"), 8, "the file has 8");
  refused(entry("[1]", "[0,4]"), 2, "the file has 2");
  refused(entry("[1]", "[4,8]"), 8, "starts at byte 4");
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  refused("{" + a + "," + a + "}", 4, "twice");
  refused("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8, "starts at byte 0");
  refused("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]}})", 10, "starts at byte 6");
  refused(R"({"__metadata__":{"a":1}})", 0, "__metadata__");
  refused(R"({"__metadata__":{"a":"1","a":"2"}})", 0, "twice");
  refused("{\"a\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}", 0, "nested");
  refused("{\"" + std::string(2000, 'k') + a.substr(2) + "}", 4, "key of 2000");
}

TEST(Safetensors, LengthIsCheckedBeforeMemoryIsTaken) {
  for (int64_t length : {int64_t{0}, int64_t{1}, int64_t{101}, int64_t{100'000'001}, INT64_MAX}) {
    EXPECT_THROW(safetensors_header_bytes(with_length("", length), 108, "f"), CheckpointError) << length;
  }
  EXPECT_THROW(safetensors_header_bytes(std::string(8, '\xFF'), INT64_MAX, "f"), CheckpointError);
  EXPECT_THROW(safetensors_header_bytes("short", 5, "f"), CheckpointError);
  EXPECT_EQ(safetensors_header_bytes(with_length("", 100), 108, "f"), 108);
}

}  // namespace
}  // namespace transxssm
