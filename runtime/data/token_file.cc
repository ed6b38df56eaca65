#include "runtime/data/token_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/crc32c.h"
#include "runtime/data/token_file_format.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxFactsBytes = 1 << 20;
constexpr int64_t kAlwaysScanBytes = int64_t{1} << 30;
constexpr const char* kHint = "make it again with `transxssm data tokenize`";

// The arrays of .idx are not aligned.
template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <class T>
int64_t find_outside(const std::byte* data, int64_t count, int64_t vocab_size) {
  // A block at a time, so that the usual case, no bad id, is a plain maximum.
  constexpr int64_t kBlock = 4096;
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t end = std::min(count, at + kBlock);
    int64_t low = 0, high = 0;
    for (int64_t i = at; i < end; ++i) {
      const auto id = static_cast<int64_t>(load<T>(data + i * static_cast<int64_t>(sizeof(T))));
      low = std::min(low, id);
      high = std::max(high, id);
    }
    if (low >= 0 && high < vocab_size) continue;
    for (int64_t i = at; i < end; ++i) {
      const auto id = static_cast<int64_t>(load<T>(data + i * static_cast<int64_t>(sizeof(T))));
      if (id < 0 || id >= vocab_size) return i;
    }
  }
  return -1;
}

template <class T>
int32_t max_of(const std::byte* data, int64_t count) {
  int32_t high = -1;
  for (int64_t i = 0; i < count; ++i)
    high = std::max(high, static_cast<int32_t>(load<T>(data + i * static_cast<int64_t>(sizeof(T)))));
  return high;
}

}  // namespace

void TokenFile::Mapping::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    throw DataError("Cannot open token file {}: {}; give the prefix without .bin or .idx.", path,
                    std::strerror(errno));
  struct stat info {};
  const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  void* mapped = nullptr;
  if (regular && info.st_size > 0)
    mapped = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (!regular) throw DataError("Token file {} is not a regular file.", path);
  if (mapped == MAP_FAILED) throw DataError("Cannot map token file {}: {}.", path, std::strerror(error));
  data = static_cast<const std::byte*>(mapped);
  size = info.st_size;
}

void TokenFile::Mapping::close() {
  if (data) ::munmap(const_cast<std::byte*>(data), static_cast<size_t>(size));
  data = nullptr;
}

TokenFile::TokenFile(const std::string& prefix) : prefix_(prefix) {
  try {
    idx_.open(prefix + ".idx");
    bin_.open(prefix + ".bin");
    check_index();
    read_facts();
  } catch (...) {
    idx_.close();
    bin_.close();
    throw;
  }
}

TokenFile::~TokenFile() {
  idx_.close();
  bin_.close();
}

TokenFile::TokenFile(TokenFile&& other) noexcept
    : prefix_(std::move(other.prefix_)),
      idx_(std::exchange(other.idx_, {})),
      bin_(std::exchange(other.bin_, {})),
      token_bytes_(other.token_bytes_),
      num_tokens_(other.num_tokens_),
      num_sequences_(other.num_sequences_),
      num_documents_(other.num_documents_),
      digest_(other.digest_),
      facts_(std::move(other.facts_)) {}

void TokenFile::check_index() {
  const std::string path = prefix_ + ".idx";
  const auto expect = [&](bool ok, const char* field, const auto& expected, const auto& actual) {
    if (!ok) throw DataError("{}: {} is {}, expected {}; {}.", path, field, actual, expected, kHint);
  };
  expect(idx_.size >= token_file::kHeaderBytes, "file size", "at least 34 bytes", idx_.size);
  expect(std::memcmp(idx_.data, token_file::kMagic.data(), token_file::kMagic.size()) == 0, "magic",
         "MMIDIDX", "something else");
  const auto version = load<uint64_t>(idx_.data + 9);
  expect(version == token_file::kVersion, "version", token_file::kVersion, version);
  const auto dtype = load<uint8_t>(idx_.data + 17);
  expect(dtype == token_file::kU16 || dtype == token_file::kI32, "dtype", "8 (u16) or 4 (i32)", int{dtype});
  token_bytes_ = dtype == token_file::kU16 ? 2 : 4;

  const auto sequences = load<uint64_t>(idx_.data + 18);
  const auto boundaries = load<uint64_t>(idx_.data + 26);
  const auto body = static_cast<uint64_t>(idx_.size - token_file::kHeaderBytes);
  // Both bounded by the file before they are multiplied, so that nothing can overflow.
  expect(sequences <= body / 12, "sequence count", fmt::format("at most {}", body / 12), sequences);
  expect(boundaries >= 1 && boundaries <= body / 8, "document count", fmt::format("1 to {}", body / 8),
         boundaries);
  const uint64_t needed = 12 * sequences + 8 * boundaries;
  expect(body != needed + sequences || sequences == 0, "content", "text", "a multimodal dataset");
  expect(body == needed, "file size", needed + token_file::kHeaderBytes, idx_.size);
  num_sequences_ = static_cast<int64_t>(sequences);
  num_documents_ = static_cast<int64_t>(boundaries) - 1;

  const std::byte* offsets = idx_.data + token_file::kHeaderBytes + 4 * num_sequences_;
  int64_t offset = 0;  // stays within the size of .bin
  for (int64_t s = 0; s < num_sequences_; ++s) {
    const int64_t length = sequence_length(s);
    expect(length >= 0, fmt::format("length of sequence {}", s).c_str(), "0 or more", length);
    const auto stored = load<int64_t>(offsets + 8 * s);
    expect(stored == offset, fmt::format("offset of sequence {}", s).c_str(), offset, stored);
    offset += length * token_bytes_;
    expect(offset <= bin_.size, fmt::format("end of sequence {}", s).c_str(),
           fmt::format("at most {}, the size of {}.bin", bin_.size, prefix_), offset);
  }
  if (offset != bin_.size)
    throw DataError(
        "{}.bin: file size is {}, expected {} as {}.idx says; it is truncated or of another dataset: {}.",
        prefix_, bin_.size, offset, prefix_, kHint);
  num_tokens_ = offset / token_bytes_;

  const std::byte* documents = offsets + 8 * num_sequences_;
  int64_t previous = 0;
  for (int64_t d = 0; d <= num_documents_; ++d) {
    const auto sequence = load<int64_t>(documents + 8 * d);
    expect(d > 0 || sequence == 0, "start of document 0", 0, sequence);
    expect(sequence >= previous && sequence <= num_sequences_,
           d == num_documents_ ? "end of the last document" : fmt::format("start of document {}", d).c_str(),
           fmt::format("{} to {}", previous, num_sequences_), sequence);
    previous = sequence;
  }
  expect(previous == num_sequences_, "end of the last document", num_sequences_, previous);
  digest_ = token_file::digest(crc32c({idx_.data, static_cast<size_t>(idx_.size)}), num_tokens_);
}

void TokenFile::read_facts() {
  FileSystem& files = posix_file_system();
  const std::string path = prefix_ + ".json";
  if (!files.exists(path)) return;
  // A side file of somebody else, or of an earlier dataset, is no error: it is not part of the format.
  const auto json = nlohmann::json::parse(read_file(files, path, kMaxFactsBytes), nullptr, false);
  if (!json.is_object()) return;
  try {
    if (json.at("tokens") != num_tokens_ || json.at("documents") != num_documents_ ||
        json.at("index_digest") != digest_)
      return;
    facts_ = TokenFileFacts{.text_bytes = json.at("text_bytes").get<int64_t>(),
                            .max_token_id = json.at("max_token_id").get<int32_t>(),
                            .vocab_size = json.at("vocab_size").get<int64_t>(),
                            .end_of_document = json.at("end_of_document").get<int32_t>(),
                            .tokenizer = json.at("tokenizer").get<std::string>()};
  } catch (const nlohmann::json::exception&) {
    facts_.reset();
  }
}

int32_t TokenFile::token(int64_t i) const {
  int32_t id;
  read(i, 1, &id);
  return id;
}

void TokenFile::read(int64_t begin, int64_t count, int32_t* out) const {
  TRANSXSSM_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens_ - count, "tokens [{}, +{}) of {}", begin,
                  count, num_tokens_);
  if (count == 0) return;
  const std::byte* from = bin_.data + begin * token_bytes_;
  if (token_bytes_ == 4) {
    std::memcpy(out, from, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = load<uint16_t>(from + 2 * i);
}

int64_t TokenFile::sequence_length(int64_t s) const {
  return load<int32_t>(idx_.data + token_file::kHeaderBytes + 4 * s);
}

int64_t TokenFile::sequence_begin(int64_t s) const {
  if (s == num_sequences_) return num_tokens_;
  return load<int64_t>(idx_.data + token_file::kHeaderBytes + 4 * num_sequences_ + 8 * s) / token_bytes_;
}

int64_t TokenFile::document_begin(int64_t d) const {
  TRANSXSSM_CHECK(d >= 0 && d <= num_documents_, "document {} of {}", d, num_documents_);
  return sequence_begin(load<int64_t>(idx_.data + token_file::kHeaderBytes + 12 * num_sequences_ + 8 * d));
}

int64_t TokenFile::document_of(int64_t i) const {
  TRANSXSSM_CHECK(i >= 0 && i < num_tokens_, "token {} of {}", i, num_tokens_);
  int64_t low = 0, high = num_documents_;  // document_begin(low) <= i < document_begin(high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (document_begin(middle) <= i ? low : high) = middle;
  }
  return low;
}

int32_t TokenFile::scan_max_token_id() const {
  return token_bytes_ == 2 ? max_of<uint16_t>(bin_.data, num_tokens_)
                           : max_of<int32_t>(bin_.data, num_tokens_);
}

void TokenFile::check_vocabulary(int64_t vocab_size) const {
  const bool trust = facts_ && bin_.size > kAlwaysScanBytes;
  if (trust && facts_->max_token_id < vocab_size) return;
  const int64_t found = token_bytes_ == 2 ? find_outside<uint16_t>(bin_.data, num_tokens_, vocab_size)
                                          : find_outside<int32_t>(bin_.data, num_tokens_, vocab_size);
  if (found >= 0) refuse_token(found, vocab_size);
}

void TokenFile::refuse_token(int64_t i, int64_t vocab_size) const {
  const int64_t document = document_of(i);
  throw DataError(
      "{}.bin: token {} of document {} (token {} of the file) has id {}, outside the model's vocabulary of "
      "{}; use "
      "the tokenizer the dataset was made with, or a larger model.vocab_size.",
      prefix_, i - document_begin(document), document, i, token(i), vocab_size);
}

}  // namespace transxssm
