#include "runtime/data/token_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/crc32c.h"
#include "runtime/data/unaligned.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

// Calls fn(T{}) with the type of a file's ids.
template <class Fn>
auto with_type(TokenType type, Fn&& fn) {
  switch (type) {
    case TokenType::u8:
      return fn(uint8_t{});
    case TokenType::i8:
      return fn(int8_t{});
    case TokenType::i16:
      return fn(int16_t{});
    case TokenType::i32:
      return fn(int32_t{});
    case TokenType::i64:
      return fn(int64_t{});
    case TokenType::u16:
      break;
  }
  return fn(uint16_t{});
}

template <class T>
T element(const std::byte* data, int64_t i) {
  return load<T>(data + i * static_cast<int64_t>(sizeof(T)));
}

}  // namespace

void TokenFile::Mapping::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a named pipe must not block
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
  modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

void TokenFile::Mapping::close() {
  if (data) ::munmap(const_cast<std::byte*>(data), static_cast<size_t>(size));
  data = nullptr;
}

void TokenFile::open_files() {
  idx_.open(prefix_ + ".idx");
  bin_.open(prefix_ + ".bin");
}

TokenFile::TokenFile(const std::string& prefix) : prefix_(prefix) {
  try {
    open_files();
    check_header();
    // First, since it goes from one end to the other, which is what the kernel reads ahead for: the checks go
    // along several arrays at once.
    const uint32_t checksum = crc32c({idx_.data, static_cast<size_t>(idx_.size)});
    check_sequences();
    check_documents();
    digest_ = token_file::digest(checksum, num_tokens_);
    read_facts();
    if (facts_) end_of_document_ = facts_->end_of_document;
  } catch (...) {
    idx_.close();
    bin_.close();
    throw;
  }
}

TokenFile::TokenFile(const std::string& prefix, const TokenFileSummary& checked) : prefix_(prefix) {
  try {
    open_files();
    if (idx_.size != checked.idx_bytes || bin_.size != checked.bin_bytes)
      throw DataError("{}.bin or {}.idx changed while the job started; start it again.", prefix, prefix);
    check_header();
    num_tokens_ = checked.num_tokens;
    digest_ = checked.digest;
    end_of_document_ = static_cast<int32_t>(checked.end_of_document);
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
      type_(other.type_),
      token_bytes_(other.token_bytes_),
      num_tokens_(other.num_tokens_),
      num_sequences_(other.num_sequences_),
      num_documents_(other.num_documents_),
      digest_(other.digest_),
      end_of_document_(other.end_of_document_),
      facts_(std::move(other.facts_)),
      facts_problem_(std::move(other.facts_problem_)) {}

std::string_view TokenFile::token_type_name() const {
  switch (type_) {
    case TokenType::u8:
      return "u8";
    case TokenType::i8:
      return "i8";
    case TokenType::i16:
      return "i16";
    case TokenType::i32:
      return "i32";
    case TokenType::i64:
      return "i64";
    case TokenType::u16:
      break;
  }
  return "u16";
}

int32_t TokenFile::token(int64_t i) const {
  int32_t id;
  read(i, 1, &id);
  return id;
}

int64_t TokenFile::id(int64_t i) const {
  return with_type(type_, [&](auto t) { return static_cast<int64_t>(element<decltype(t)>(bin_.data, i)); });
}

void TokenFile::read(int64_t begin, int64_t count, int32_t* out) const {
  TRANSXSSM_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens_ - count, "tokens [{}, +{}) of {}", begin,
                  count, num_tokens_);
  if (count == 0) return;
  const std::byte* from = bin_.data + begin * token_bytes_;
  if (type_ == TokenType::i32) {
    std::memcpy(out, from, static_cast<size_t>(count) * 4);
    return;
  }
  with_type(type_, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < count; ++i) {
      const T value = element<T>(from, i);
      if constexpr (sizeof(T) == 8)
        out[i] = value == static_cast<int32_t>(value) ? static_cast<int32_t>(value) : -1;
      else
        out[i] = value;
    }
  });
}

void TokenFile::prefetch(int64_t begin, int64_t count) const {
  if (count <= 0) return;
  static const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t from = begin * token_bytes_ / page * page;  // the mapping begins at a page
  const int64_t to = std::min(bin_.size, (begin + count) * token_bytes_);
  ::madvise(const_cast<std::byte*>(bin_.data) + from, static_cast<size_t>(to - from), MADV_WILLNEED);
}

int64_t TokenFile::sequence_length(int64_t s) const {
  return element<int32_t>(idx_.data + token_file::kHeaderBytes, s);
}

int64_t TokenFile::sequence_begin(int64_t s) const {
  if (s == num_sequences_) return num_tokens_;
  return element<int64_t>(idx_.data + token_file::kHeaderBytes + 4 * num_sequences_, s) / token_bytes_;
}

int64_t TokenFile::document_begin(int64_t d) const {
  TRANSXSSM_CHECK(d >= 0 && d <= num_documents_, "document {} of {}", d, num_documents_);
  return sequence_begin(element<int64_t>(idx_.data + token_file::kHeaderBytes + 12 * num_sequences_, d));
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

IdRange TokenFile::scan_ids(int64_t begin, int64_t count) const {
  TRANSXSSM_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens_ - count, "tokens [{}, +{}) of {}", begin,
                  count, num_tokens_);
  if (count == 0) return {};
  return with_type(type_, [&](auto t) {
    using T = decltype(t);
    const std::byte* from = bin_.data + begin * token_bytes_;
    T low = std::numeric_limits<T>::max(), high = std::numeric_limits<T>::min();
    for (int64_t i = 0; i < count; ++i) {
      const T value = element<T>(from, i);
      low = std::min(low, value);
      high = std::max(high, value);
    }
    return IdRange{static_cast<int64_t>(low), static_cast<int64_t>(high)};
  });
}

void TokenFile::check_vocabulary(int64_t vocab_size) const {
  const std::optional<IdRange> known = known_ids();
  check_vocabulary(vocab_size, known ? *known : scan_ids(0, num_tokens_));
}

void TokenFile::check_vocabulary(int64_t vocab_size, const IdRange& ids) const {
  const auto is_outside = [&](const IdRange& range) {
    return range.low <= range.high && (range.low < 0 || range.high >= vocab_size);
  };
  if (!is_outside(ids)) return;
  constexpr int64_t kBlock = int64_t{1} << 16;
  for (int64_t at = 0; at < num_tokens_; at += kBlock) {
    const int64_t end = std::min(num_tokens_, at + kBlock);
    if (!is_outside(scan_ids(at, end - at))) continue;
    for (int64_t i = at; i < end; ++i)
      if (id(i) < 0 || id(i) >= vocab_size) refuse_token(i, vocab_size);
  }
}

void TokenFile::refuse_token(int64_t i, int64_t vocab_size) const {
  const int64_t document = document_of(i);
  throw DataError(
      "{}.bin: token {} of document {} (token {} of the file) has id {}, outside the model's vocabulary of "
      "{}; use "
      "the tokenizer the dataset was made with, or a larger model.vocab_size.",
      prefix_, i - document_begin(document), document, i, id(i), vocab_size);
}

}  // namespace transxssm
