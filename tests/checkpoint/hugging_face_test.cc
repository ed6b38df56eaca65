#include "checkpoint/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "runtime/printable.h"
#include "tests/support/fault_file_system.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using Fault = FaultFileSystem::Fault;

TEST(HalfPrecision, EveryF16IsExact) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = float_from_f16(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int fraction = static_cast<int>(bits & 1023);
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0) << bits;
      EXPECT_EQ(std::isinf(value), fraction == 0) << bits;
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(std::abs(value), magnitude) << bits;
    }
    EXPECT_EQ(std::signbit(value), bits >= 32768) << bits;
  }
}

TEST(HalfPrecision, Bf16IsRoundedToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = float_from_bf16(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    if (!std::isnan(value)) {
      EXPECT_EQ(bf16_from_float(value), bits);
    }
  }
  const auto rounded = [](double value) {
    return float_from_bf16(bf16_from_float(static_cast<float>(value)));
  };
  EXPECT_EQ(rounded(1 + 0x1p-8), 1.0f);                 // a tie, to even
  EXPECT_EQ(rounded(1 + 0x3p-8), 1.0f + 0x1p-6f);       // a tie, to even
  EXPECT_EQ(rounded(1 + 0x1.0002p-8), 1.0f + 0x1p-7f);  // above a tie
  EXPECT_EQ(rounded(1 + 0x1.FFFEp-9), 1.0f);            // below
  EXPECT_EQ(rounded(-(1 + 0x3p-8)), -1.0f - 0x1p-6f);
  EXPECT_EQ(rounded(0x1p-149), 0.0f);         // the smallest f32
  EXPECT_EQ(rounded(0x1p-133), 0x1p-133f);    // the smallest bf16
  EXPECT_EQ(rounded(0x1.8p-134), 0x1p-133f);  // subnormal, up
  EXPECT_EQ(rounded(0x1p-134), 0.0f);         // subnormal, a tie
  EXPECT_EQ(rounded(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_EQ(rounded(-INFINITY), -INFINITY);
  for (const uint32_t nan : {0x7F800001U, 0xFFC00000U, 0x7FFFFFFFU})
    EXPECT_TRUE(std::isnan(float_from_bf16(bf16_from_float(std::bit_cast<float>(nan))))) << nan;
}

std::vector<float> values_of(const std::string& name, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(name.back()) + static_cast<float>(i) / 1024;
  return values;
}

std::vector<WeightSource> sources(const std::vector<NamedShape>& tensors) {
  std::vector<WeightSource> list;
  for (const NamedShape& tensor : tensors)
    list.push_back({tensor.name, tensor.shape,
                    [tensor] { return values_of(tensor.name, tensor.shape.num_elements()); }});
  return list;
}

const std::vector<NamedShape> kTensors = {
    {"a", {3, 4}}, {"b", {5}}, {"c", {2, 1, 3}}, {"d", {40}}, {"e", {1}}};

class WeightFolderTest : public testing::Test {
 protected:
  std::string write(const std::string& name, DType dtype = DType::f32, int64_t max_bytes = 1 << 20) {
    write_weight_folder(files_, directory_ / name, std::vector<FolderText>{{"config.json", "{}"}},
                        sources(kTensors), dtype, max_bytes);
    return directory_ / name;
  }
  // One tensor "a" of these bytes.
  std::string hand_made(const std::string& dtype, const std::string& shape, const std::string& bytes) {
    const std::string header = fmt::format(R"({{"a":{{"dtype":"{}","shape":{},"data_offsets":[0,{}]}}}})",
                                           dtype, shape, bytes.size());
    std::string file(8, '\0');
    file[0] = static_cast<char>(header.size());
    std::filesystem::create_directories(directory_ / "made");
    directory_.write("made/model.safetensors", file + header + bytes);
    return directory_ / "made";
  }
  void expect_refused(const std::function<void()>& fn, const std::vector<std::string>& parts) {
    try {
      fn();
      ADD_FAILURE() << "no error, though " << parts.front();
    } catch (const CheckpointError& error) {
      for (const std::string& part : parts) EXPECT_THAT(error.what(), HasSubstr(part));
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }
  json index(const std::string& folder) {
    return json::parse(TemporaryDirectory::read(folder + "/model.safetensors.index.json"));
  }
  void set_index(const std::string& folder, const json& index) {
    std::ofstream(folder + "/model.safetensors.index.json") << index.dump();
  }

  TemporaryDirectory directory_;
  FileSystem& files_ = posix_file_system();
};

TEST_F(WeightFolderTest, WhatIsWrittenIsRead) {
  for (const int64_t max_bytes : {int64_t{1} << 20, int64_t{64}, int64_t{4}}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} {}", max_bytes, dtype_name(dtype)));
      const std::string folder = write(fmt::format("{}{}", max_bytes, dtype_name(dtype)), dtype, max_bytes);
      const WeightFolder weights(files_, folder);
      weights.check(kTensors);
      ASSERT_EQ(weights.tensors().size(), kTensors.size());
      for (const NamedShape& tensor : kTensors) {
        std::vector<float> expected = values_of(tensor.name, tensor.shape.num_elements());
        if (dtype == DType::bf16) {
          for (float& value : expected) value = float_from_bf16(bf16_from_float(value));
        }
        EXPECT_EQ(weights.read(tensor.name), expected) << tensor.name;
      }
      EXPECT_EQ(files_.exists(folder + "/model.safetensors"), max_bytes == 1 << 20);
      EXPECT_EQ(TemporaryDirectory::read(folder + "/config.json"), "{}");
    }
  }
  EXPECT_THAT(files_.list(directory_ / "4f32"), testing::Contains("model-00005-of-00005.safetensors"));
  // 48 + 20, 24, 160, 4 bytes: a tensor that is too large is a shard of its own.
  const json sharded = index(directory_ / "64f32");
  EXPECT_EQ(sharded["metadata"]["total_size"], 4 * (12 + 5 + 6 + 40 + 1));
  EXPECT_EQ(sharded["weight_map"]["a"], "model-00001-of-00004.safetensors");
  EXPECT_EQ(sharded["weight_map"]["c"], "model-00002-of-00004.safetensors");
  EXPECT_EQ(sharded["weight_map"]["d"], "model-00003-of-00004.safetensors");
  EXPECT_EQ(sharded["weight_map"]["e"], "model-00004-of-00004.safetensors");
  EXPECT_THROW(write("4f32"), UsageError);
}

TEST_F(WeightFolderTest, LinksOfTheModelCacheAreFollowed) {
  const std::string folder = write("blobs");
  std::filesystem::create_directories(directory_ / "snapshot");
  std::filesystem::create_symlink("../blobs/model.safetensors", directory_ / "snapshot/model.safetensors");
  EXPECT_EQ(WeightFolder(files_, directory_ / "snapshot").read("b"), values_of("b", 5));
}

TEST_F(WeightFolderTest, HalfPrecisionFiles) {
  // 1, the smallest subnormal, -2, the largest finite.
  const std::string f16{'\x00', '\x3C', '\x01', '\x00', '\x00', '\xC0', '\xFF', '\x7B'};
  EXPECT_EQ(WeightFolder(files_, hand_made("F16", "[2,2]", f16)).read("a"),
            (std::vector<float>{1, 0x1p-24f, -2, 65504}));
  const std::string bf16{'\x80', '\x3F', '\x01', '\x00'};
  EXPECT_EQ(WeightFolder(files_, hand_made("BF16", "[2]", bf16)).read("a"),
            (std::vector<float>{1, 0x1p-133f}));
}

TEST_F(WeightFolderTest, DoublesAreRoundedToNearestEven) {
  std::string bytes;
  for (const double value : {1.0, 1 + 0x1p-24, 1 + 0x3p-24, -0x1p-149, 1e-300, 0.1}) {
    const auto bits = std::bit_cast<std::array<char, 8>>(value);
    bytes.append(bits.data(), bits.size());
  }
  const std::string folder = hand_made("F64", "[2,3]", bytes);
  const WeightFolder weights(files_, folder);
  weights.check(std::vector<NamedShape>{{"a", {2, 3}}});
  EXPECT_EQ(weights.read("a"), (std::vector<float>{1, 1, 1 + 0x1p-22f, -0x1p-149f, 0, 0.1f}));
  const auto large = std::bit_cast<std::array<char, 8>>(1e39);
  expect_refused(
      [&] { WeightFolder(files_, hand_made("F64", "[1]", std::string(large.data(), 8))).read("a"); },
      {"tensor a [1] is inf at element 0"});
}

TEST_F(WeightFolderTest, ManyDifferencesAreCounted) {
  std::vector<NamedShape> expected = kTensors;
  for (int i = 0; i < 1000; ++i) expected.push_back({fmt::format("x{}", i), {1}});
  const WeightFolder weights(files_, write("w"));
  expect_refused([&] { weights.check(expected); }, {"tensor x11 [1] is missing; and 988 more"});
}

TEST_F(WeightFolderTest, EveryDifferenceIsListed) {
  const std::string folder = write("w");
  const WeightFolder weights(files_, folder);
  std::vector<NamedShape> expected = kTensors;
  expected[0].shape = {4, 3};
  expected[1].name = "f";
  expected.push_back({"g", {7}});
  expect_refused([&] { weights.check(expected); },
                 {"w/model.safetensors: ", "tensor a has shape [3, 4], config.json needs [4, 3]",
                  "tensor f [5] is missing", "tensor g [7] is missing", "tensor \"b\" [5] is not part of"});
  WeightFolder(files_, folder, [](const std::string& name) {
    return name != "a";
  }).check(std::vector<NamedShape>{kTensors[0]});
}

TEST_F(WeightFolderTest, OtherTypesAndNumbersAreRefused) {
  const std::string folder = hand_made("I64", "[1]", std::string(8, '\0'));
  expect_refused(
      [&] {
        WeightFolder(files_, folder).check(std::vector<NamedShape>{{"a", {1}}});
      },
      {"tensor a is I64", "F32, BF16, F16 and F64"});
  for (const char* type : {"F8_E4M3", "BOOL"})
    expect_refused(
        [&] {
          WeightFolder(files_, hand_made(type, "[1]", "x")).check(std::vector<NamedShape>{{"a", {1}}});
        },
        {"tensor a is " + std::string(type)});
  expect_refused([&] { WeightFolder(files_, hand_made("F4", "[1]", "x")); }, {"\"a\"", "F4"});
  const std::string nan{'\0', '\0', '\0', '\0', '\0', '\0', '\xC0', '\x7F'};
  expect_refused([&] { WeightFolder(files_, hand_made("F32", "[2]", nan)).read("a"); },
                 {"tensor a [2] is nan at element 1"});
  expect_refused(
      [&] {
        WeightFolder(files_, hand_made("F16", "[2]", std::string{'\0', '\0', '\0', '\x7C'})).read("a");
      },
      {"tensor a [2] is inf at element 1"});
}

TEST_F(WeightFolderTest, TruncatedFilesAreRefused) {
  const std::string file = TemporaryDirectory::read(write("w") + "/model.safetensors");
  std::filesystem::create_directories(directory_ / "cut");
  for (const size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, file.size() - 1}) {
    directory_.write("cut/model.safetensors", file.substr(0, size));
    expect_refused([&] { WeightFolder(files_, directory_ / "cut"); }, {"cut/model.safetensors"});
  }
}

TEST_F(WeightFolderTest, FoldersAndIndexesThatContradictThemselves) {
  expect_refused([&] { WeightFolder(files_, directory_ / "nowhere"); }, {"nowhere"});
  expect_refused([&] { WeightFolder(files_, directory_.path()); }, {"only safetensors files are read"});

  const std::string folder = write("s", DType::f32, 64);
  const json good = index(folder);
  const auto with = [&](const std::string& tensor, const json& shard) {
    json changed = good;
    changed["weight_map"][tensor] = shard;
    set_index(folder, changed);
  };
  const auto open = [&] { WeightFolder(files_, folder); };
  with("a", "model-00002-of-00004.safetensors");
  expect_refused(open, {"tensor \"a\" is not in model-00002-of-00004.safetensors"});
  with("z", "model-00002-of-00004.safetensors");
  expect_refused(open, {"tensor \"z\" is not in model-00002-of-00004.safetensors"});
  for (const json& name : {json("../s/model-00001-of-00004.safetensors"), json("/etc/passwd"), json(7),
                           json(""), json("pytorch_model.bin")}) {
    with("a", name);
    expect_refused(open, {"index.json", "not a file name"});
  }
  with("a", "model-00009-of-00004.safetensors");
  expect_refused(open, {"model-00009-of-00004.safetensors"});
  json changed = good;
  changed["weight_map"].erase("b");
  set_index(folder, changed);
  expect_refused(open, {"tensor \"b\"", "is not named"});
  set_index(folder, json::array());
  expect_refused(open, {"weight_map"});
  const auto with_text = [&](const std::string& text) {
    std::ofstream(folder + "/model.safetensors.index.json") << text;
  };
  std::string deep = "{\"metadata\": ";
  for (int i = 0; i < 200'000; ++i) deep += "[";
  with_text(deep);
  expect_refused(open, {"index.json", "nested more than 8 deep"});
  std::string many = "{\"weight_map\": {}, \"metadata\": [0";
  for (int i = 0; i < 1'000'001; ++i) many += ",0";
  with_text(many + "]}");
  expect_refused(open, {"index.json", "more than 1000000 values"});
  with_text(R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})");
  expect_refused(open, {"index.json", "key weight_map.a is written twice"});
  with_text(R"({"weight_map": {}})");
  expect_refused(open, {"names no tensor"});
  with_text(R"({"weight_map": {"a": "\u001b[2J"}})");
  expect_refused(open, {"\"\\u001b[2J\""});
  with_text("{\"weight_map\": {\"\xc2\x9b\": \"\xc2\x9b.safetensors\"}}");
  try {
    open();
    ADD_FAILURE();
  } catch (const CheckpointError& error) {
    EXPECT_EQ(printable_message(error.what()).find("\xc2\x9b"), std::string::npos);
  }
  std::ofstream(folder + "/model.safetensors.index.json") << "{";
  expect_refused(open, {"not JSON"});
  // The same tensor in two shards.
  set_index(folder, good);
  std::filesystem::copy_file(folder + "/model-00001-of-00004.safetensors",
                             folder + "/model-00002-of-00004.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  expect_refused(open, {"tensor \"a\" is also in"});
  std::filesystem::remove(folder + "/model-00003-of-00004.safetensors");
  std::filesystem::remove(folder + "/model-00002-of-00004.safetensors");
  expect_refused(open, {"model-00002-of-00004.safetensors"});
}

// At every call of the file system: an error leaves nothing, a kill nothing that looks like the folder.
TEST(WeightFolderFaults, NothingHalfWrittenIsSeen) {
  const auto write = [](FileSystem& files) {
    write_weight_folder(files, "/out", std::vector<FolderText>{{"config.json", "{}"}}, sources(kTensors),
                        DType::f32, 64);
  };
  Disk whole;
  FaultFileSystem counting(whole);
  counting.arm(Fault::none, 0);
  write(counting);
  const int64_t operations = counting.operations();
  ASSERT_GT(operations, 20);
  for (int64_t operation = 1; operation <= operations; ++operation) {
    SCOPED_TRACE(operation);
    Disk disk;
    FaultFileSystem failing(disk);
    failing.arm(Fault::fail_once, operation, EIO);
    EXPECT_THROW(write(failing), CheckpointSaveError);
    failing.arm(Fault::none, 0);
    EXPECT_TRUE(failing.list("/").empty());

    Disk killed;
    FaultFileSystem files(killed);
    files.arm(Fault::kill, operation);
    EXPECT_THROW(write(files), ProcessKilled);
    FaultFileSystem after(killed);
    for (const std::string& name : after.list("/")) {
      if (name != "out") {
        EXPECT_TRUE(name.starts_with(".tmp-")) << name;
      } else {
        WeightFolder(after, "/out").check(kTensors);
      }
    }
  }
}

}  // namespace
}  // namespace transxssm
