// The names of a TXC1 checkpoint. Readers open only names made here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace transxssm {

inline constexpr int64_t kMaxStep = 999'999'999;
inline constexpr int64_t kMaxTokens = 1'000'000'000'000'000'000;  // and rows, of a run
inline constexpr int kMaxShards = 100'000;
inline constexpr int64_t kChunkBytes = int64_t{4} << 20;  // of one checksum, in files written
inline constexpr int64_t kDataAlignment = 4096;           // of the first tensor in a data file
inline constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;
inline constexpr int64_t kMaxTableBytes = int64_t{256} << 20;
inline constexpr int64_t kMaxTextBytes = int64_t{256} << 20;

inline constexpr const char* kCommitFile = "COMMIT";
inline constexpr const char* kManifestFile = "manifest.pb";
inline constexpr const char* kConfigFile = "run/config.textproto";
inline constexpr const char* kTokenizerFile = "run/tokenizer.json";
inline constexpr const char* kBuildFile = "run/build.txt";
inline constexpr const char* kLatestFile = "LATEST";

std::string step_name(int64_t step);  // "step-000012000"
std::optional<int64_t> parse_step_name(std::string_view name);
std::string data_file(int shard);   // "shards/rank-00003.safetensors"
std::string table_file(int shard);  // "shards/rank-00003.pb"

// Directories beside the steps: being written, being deleted, and, between the two renames of a save that
// replaces a step, the old one.
enum class Aside { writing, deleted, replaced };
std::string aside_name(Aside aside, int64_t step, const std::string& uuid);  // ".tmp-000012000-<uuid>"
std::optional<int64_t> parse_aside_name(Aside aside, std::string_view name);

// The mark of a whole checkpoint.
struct Commit {
  std::string uuid;
  int64_t manifest_bytes = 0;
  uint32_t manifest_crc = 0;
};
std::string encode_commit(const Commit& commit);  // "TXC1 <uuid> <bytes> <crc32c>\n"
std::optional<Commit> parse_commit(std::string_view text);

bool is_uuid(std::string_view text);  // 32 lower-case hexadecimal digits

// The parts of a path: "a/b" and "c" of "a/b/c" and of "a/b/c/".
std::string directory_of(const std::string& path);
std::string name_of(const std::string& path);

}  // namespace transxssm
