// Growth of the readers of binary files, whose shapes are made by their writers.
#include <algorithm>

#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "tests/fuzz/growth.h"
#include "tests/support/compressed.h"

namespace transxssm::fuzz {
namespace {

using Lengths = std::function<uint64_t(int sequence)>;

// An index of n documents of one sequence each, and as many bytes of ids as the target takes.
std::string token_index(int n, const Lengths& length) {
  std::string lengths, offsets, documents;
  uint64_t offset = 0;
  for (int s = 0; s < n; ++s) {
    lengths += little_endian(length(s), 4);
    offsets += little_endian(offset, 8);
    documents += little_endian(static_cast<uint64_t>(s), 8);
    offset += length(s);
  }
  const auto count = static_cast<uint64_t>(n);
  return little_endian(offset, 2) + std::string("MMIDIDX\0\0", 9) + little_endian(1, 8) +
         little_endian(1, 1) + little_endian(count, 8) + little_endian(count + 1, 8) + lengths + offsets +
         documents + little_endian(count, 8);
}

// Text that does not get much shorter.
std::string noise(int n) {
  uint32_t state = 1;
  return repeat(n, [&](int) { return fmt::format("{:08x}", state = state * 1664525 + 1013904223); });
}

// A checkpoint of one shard: n tensors of a row each, or one of n rows in as many boxes.
std::string checkpoint(int n, bool one_tensor) {
  Manifest manifest;
  manifest.save_uuid = std::string(32, '0');
  BoxTable table{.header_bytes = 10, .chunk_bytes = 4096};
  int64_t end = table.header_bytes;
  for (int i = 0; i < n; ++i) {
    if (!one_tensor || i == 0) {
      TensorInfo& info = manifest.tensors.emplace_back();
      info.name = fmt::format("w{:08}", i);
      info.global_shape = {one_tensor ? n : 1, 2};
    }
    StoredBox& box = table.boxes.emplace_back();
    box.tensor = one_tensor ? 0 : i;
    box.box = {{one_tensor ? i : 0, 0}, {1, 2}};
    box.begin = end;
    box.end = end = end + 8;
    box.chunk_crcs = {0};
  }
  for (const std::string& path : {data_file(0), table_file(0), std::string(kConfigFile),
                                  std::string(kTokenizerFile), std::string(kBuildFile)})
    manifest.files.push_back({.path = path});
  manifest.files[0].bytes = end;
  return part(encode_manifest(manifest)) + part(encode_table(table));
}

// As many shards as the numbers of a mesh allow, without a tensor.
std::string shards(int n) {
  Manifest manifest;
  manifest.save_uuid = std::string(32, '0');
  for (int s = 0; s < n; ++s) {
    manifest.files.push_back({.path = data_file(s), .bytes = 10});
    manifest.files.push_back({.path = table_file(s)});
  }
  for (const char* path : {kConfigFile, kTokenizerFile, kBuildFile}) manifest.files.push_back({.path = path});
  return part(encode_manifest(manifest)) +
         repeat(n, part(encode_table({.header_bytes = 10, .chunk_bytes = 4096})));
}

const std::vector<Reading>& binary_shapes() {
  static const std::vector<Reading> list = {
      {"TokenFileSequences", "token_file",
       [](int n) { return token_index(n, [](int s) { return s < 8000 ? 1 : 0; }); }},
      {"TokenFileEmpty", "token_file", [](int n) { return token_index(n, [](int) { return 0; }); }},
      {"TokenFileOneLong", "token_file",
       [](int n) { return token_index(n, [n](int s) { return s == n / 2 ? 8000 : 0; }); }},
      {"TokenFileWrongAtEnd", "token_file",
       [](int n) { return token_index(n, [n](int s) { return s + 1 == n ? 0x80000000 : 0; }); }},
      {"GzipMembers", "compressed", [](int n) { return '\0' + repeat(n, gzip("a")); }},
      {"GzipEmptyMembers", "compressed", [](int n) { return '\0' + repeat(n, gzip("")); }},
      {"GzipPadding", "compressed",
       [](int n) { return '\0' + gzip("a") + std::string(static_cast<size_t>(n), '\0'); }},
      {"GzipContent", "text", [](int n) { return "\1\20" + gzip(noise(n)); }},
      {"ZstdFrames", "compressed", [](int n) { return '\1' + repeat(n, zstd("a")); }},
      {"ZstdSkippedFrames", "compressed",
       [](int n) { return '\1' + zstd("a") + repeat(n, std::string("\x50\x2A\x4D\x18\0\0\0\0", 8)); }},
      {"ZstdPadding", "compressed",
       [](int n) { return '\1' + zstd("a") + std::string(static_cast<size_t>(n), '\0'); }},
      {"ZstdContent", "text", [](int n) { return "\1\20" + zstd(noise(n)); }},
      {"IndexTensors", "checkpoint_index", [](int n) { return checkpoint(n, false); }},
      {"IndexBoxes", "checkpoint_index", [](int n) { return checkpoint(n, true); }},
      {"IndexShards", "checkpoint_index", shards},
  };
  return list;
}

INSTANTIATE_TEST_SUITE_P(BinaryReaders, Growth, testing::ValuesIn(binary_shapes()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace transxssm::fuzz
