#include "checkpoint/layout.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "checkpoint/checkpoint.h"

namespace transxssm {
namespace {

constexpr size_t kStepDigits = 9;
constexpr size_t kUuidDigits = 32;

const char* prefix(Aside aside) {
  switch (aside) {
    case Aside::writing:
      return ".tmp-";
    case Aside::deleted:
      return ".trash-";
    case Aside::replaced:
      return ".replaced-";
  }
  throw InternalError("unknown directory kind");
}

std::optional<int64_t> parse_digits(std::string_view text) {
  if (text.size() != kStepDigits) return std::nullopt;
  int64_t value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

}  // namespace

const char* tensor_kind_name(TensorKind kind) {
  switch (kind) {
    case TensorKind::master:
      return "master";
    case TensorKind::exp_avg:
      return "exp_avg";
    case TensorKind::exp_avg_sq:
      return "exp_avg_sq";
    case TensorKind::buffer:
      return "buffer";
  }
  throw InternalError("unknown tensor kind {}", static_cast<int>(kind));
}

std::string make_uuid() {
  unsigned char bytes[kUuidDigits / 2];
  TRANSXSSM_CHECK(::getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes), "no random bytes from the system");
  std::string uuid;
  for (unsigned char byte : bytes) uuid += fmt::format("{:02x}", byte);
  return uuid;
}

std::string step_name(int64_t step) {
  return fmt::format("step-{:09d}", step);
}

std::optional<int64_t> parse_step_name(std::string_view name) {
  if (!name.starts_with("step-")) return std::nullopt;
  return parse_digits(name.substr(5));
}

std::string data_file(int shard) {
  return fmt::format("shards/rank-{:05d}.safetensors", shard);
}
std::string table_file(int shard) {
  return fmt::format("shards/rank-{:05d}.pb", shard);
}

std::string aside_name(Aside aside, int64_t step, const std::string& uuid) {
  return fmt::format("{}{:09d}-{}", prefix(aside), step, uuid);
}

std::optional<int64_t> parse_aside_name(Aside aside, std::string_view name) {
  if (!name.starts_with(prefix(aside))) return std::nullopt;
  name.remove_prefix(std::string_view(prefix(aside)).size());
  if (name.size() != kStepDigits + 1 + kUuidDigits || name[kStepDigits] != '-') return std::nullopt;
  if (!is_uuid(name.substr(kStepDigits + 1))) return std::nullopt;
  return parse_digits(name.substr(0, kStepDigits));
}

std::string encode_commit(const Commit& commit) {
  return fmt::format("TXC1 {} {} {:08x}\n", commit.uuid, commit.manifest_bytes, commit.manifest_crc);
}

std::optional<Commit> parse_commit(std::string_view text) {
  constexpr size_t kUuidBegin = 5;
  constexpr size_t kBytesBegin = kUuidBegin + kUuidDigits + 1;
  if (text.size() < kBytesBegin || text.size() > kBytesBegin + 40) return std::nullopt;
  Commit commit;
  commit.uuid = text.substr(kUuidBegin, kUuidDigits);
  const char* end = text.data() + text.size();
  const auto bytes = std::from_chars(text.data() + kBytesBegin, end, commit.manifest_bytes);
  if (bytes.ec != std::errc() || bytes.ptr == end) return std::nullopt;
  if (std::from_chars(bytes.ptr + 1, end, commit.manifest_crc, 16).ec != std::errc()) return std::nullopt;
  // One spelling only: a changed byte anywhere shows.
  if (!is_uuid(commit.uuid) || encode_commit(commit) != text) return std::nullopt;
  return commit;
}

bool is_uuid(std::string_view text) {
  return text.size() == kUuidDigits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string directory_of(const std::string& path) {
  std::string text = path;
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  const std::string parent = std::filesystem::path(text).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string name_of(const std::string& path) {
  std::string text = path;
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return std::filesystem::path(text).filename().string();
}

}  // namespace transxssm
