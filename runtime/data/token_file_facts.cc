// What stands beside the two files of a dataset: PREFIX.json, of its writer, and PREFIX.ids.json, of the
// first reader that had to read all tokens. Neither is trusted: they are believed where they fit the index,
// and readers check the ids they read in any case.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "runtime/data/token_file.h"
#include "runtime/error.h"
#include "runtime/json.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 20;
constexpr int64_t kAlwaysScanBytes = int64_t{1} << 28;
constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxDigest = 64;
constexpr const char* kIdsFormat = "transxssm token ids 1";

struct SideFile {
  nlohmann::json value;  // an object, or null
  bool exists = false;
  std::string problem = {};
};

// Links are followed, as for the two files of the dataset; what is no regular file is not waited for.
SideFile read_side_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return {};
  SideFile side{.exists = true};
  if (fd < 0) {
    side.problem = std::generic_category().message(errno);
    return side;
  }
  struct stat info {};
  std::string text;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    side.problem = "it is no regular file";
  } else if (info.st_size > kMaxBytes) {
    side.problem = fmt::format("it has {} bytes, more than {}", info.st_size, kMaxBytes);
  } else {
    text.resize(static_cast<size_t>(info.st_size));
    size_t have = 0;
    while (have < text.size()) {
      const ssize_t count = ::read(fd, text.data() + have, text.size() - have);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;
      have += static_cast<size_t>(count);
    }
    text.resize(have);
  }
  ::close(fd);
  if (!side.problem.empty()) return side;
  JsonText json = parse_json(text, {.max_bytes = kMaxBytes, .max_depth = 8, .max_values = 1000});
  side.problem = json.problem;
  if (json.value.is_object()) side.value = std::move(json.value);
  return side;
}

bool has_digest(const nlohmann::json& object, uint64_t digest) {
  const auto at = object.find("index_digest");
  return at != object.end() && at->is_number_unsigned() && at->get<uint64_t>() == digest;
}

bool is_hexadecimal(const std::string& text) {
  return text.size() <= kMaxDigest && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

void TokenFile::read_facts() {
  const SideFile side = read_side_file(prefix_ + ".json");
  if (!side.exists) return;
  const auto refuse = [&](const std::string& why) {
    facts_problem_ = fmt::format("{}.json is not used: {}", prefix_, why);
  };
  if (!side.problem.empty()) return refuse(side.problem);
  // A file of somebody else is no concern of ours: it is not part of the format.
  if (!side.value.contains("index_digest")) return;
  const nlohmann::json& json = side.value;
  if (json_integer(json, "tokens") != num_tokens_ || json_integer(json, "documents") != num_documents_ ||
      !has_digest(json, digest_))
    return refuse("it describes another dataset than the .idx beside it");
  const auto text_bytes = json_integer(json, "text_bytes", 0);
  const auto max_token_id = json_integer(json, "max_token_id", -1, kMaxId);
  const auto vocab_size = json_integer(json, "vocab_size", 1, kMaxId);
  const auto end_of_document = json_integer(json, "end_of_document", -1, kMaxId);
  const auto tokenizer = json_string(json, "tokenizer");
  for (const auto& [name, there] : {std::pair{"text_bytes", text_bytes.has_value()},
                                    {"max_token_id", max_token_id.has_value()},
                                    {"vocab_size", vocab_size.has_value()},
                                    {"end_of_document", end_of_document.has_value()},
                                    {"tokenizer", tokenizer.has_value()}})
    if (!there) return refuse(fmt::format("its field {} is missing or no legal value", name));
  const std::string digest = json_string(json, "tokenizer_digest").value_or("");
  if (!is_hexadecimal(digest) ||
      (digest.empty() && json.contains("tokenizer_digest") && !json.at("tokenizer_digest").is_string()))
    return refuse("its field tokenizer_digest is no digest");
  facts_ = TokenFileFacts{.text_bytes = *text_bytes,
                          .max_token_id = static_cast<int32_t>(*max_token_id),
                          .vocab_size = *vocab_size,
                          .end_of_document = static_cast<int32_t>(*end_of_document),
                          .tokenizer = *tokenizer,
                          .tokenizer_digest = digest};
}

std::optional<IdRange> TokenFile::known_ids() const {
  if (bin_.size <= kAlwaysScanBytes) return std::nullopt;
  if (facts_) return IdRange{0, facts_->max_token_id};
  const SideFile side = read_side_file(prefix_ + ".ids.json");
  const auto low = json_integer(side.value, "min_token_id"), high = json_integer(side.value, "max_token_id");
  if (json_string(side.value, "format") != kIdsFormat || !has_digest(side.value, digest_) ||
      json_integer(side.value, "bin_bytes") != bin_.size ||
      json_integer(side.value, "bin_modified_ns") != bin_.modified_ns || !low || !high)
    return std::nullopt;
  return IdRange{*low, *high};
}

void TokenFile::remember_ids(const IdRange& ids) const {
  if (bin_.size <= kAlwaysScanBytes || facts_) return;
  const std::string path = prefix_ + ".ids.json";
  const SideFile there = read_side_file(path);
  if (there.exists && json_string(there.value, "format") != kIdsFormat) return;  // somebody else's
  const nlohmann::json json = {{"format", kIdsFormat},    {"index_digest", digest_},
                               {"bin_bytes", bin_.size},  {"bin_modified_ns", bin_.modified_ns},
                               {"min_token_id", ids.low}, {"max_token_id", ids.high}};
  try {
    OutputFiles(posix_file_system(), {path}, {.overwrite = true}).publish_text(json.dump(2) + "\n");
  } catch (const Error&) {  // a directory of others: the next start reads the tokens again
  }
}

}  // namespace transxssm
