// The checks of .idx. A sound index of 10^8 documents is read at the speed of memory: messages are formed
// only for what is wrong.
#include <algorithm>

#include "runtime/data/token_file.h"
#include "runtime/data/unaligned.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

constexpr const char* kHint = "make it again with `transxssm data tokenize`";
constexpr int64_t kBlock = 4096;  // entries checked before the verdict on them

template <class Expected, class Actual>
void expect(bool ok, const std::string& prefix, std::string_view field, const Expected& expected,
            const Actual& actual) {
  if (!ok) throw DataError("{}.idx: {} is {}, expected {}; {}.", prefix, field, actual, expected, kHint);
}

}  // namespace

void TokenFile::check_header() {
  expect(idx_.size >= token_file::kHeaderBytes, prefix_, "file size", "at least 34 bytes", idx_.size);
  expect(std::memcmp(idx_.data, token_file::kMagic.data(), token_file::kMagic.size()) == 0, prefix_, "magic",
         "MMIDIDX", "something else");
  const auto version = load<uint64_t>(idx_.data + 9);
  expect(version == token_file::kVersion, prefix_, "version", token_file::kVersion, version);
  const auto code = load<uint8_t>(idx_.data + 17);
  if (code == 6 || code == 7)
    throw DataError(
        "{}.idx: dtype is {}, floating point, which holds no token ids; {} (legal: 1 u8, 2 i8, 3 i16, 4 i32, "
        "5 i64, 8 u16).",
        prefix_, int{code}, kHint);
  type_ = static_cast<TokenType>(code);
  token_bytes_ = token_type_bytes(type_);
  expect(token_bytes_ > 0, prefix_, "dtype", "1 (u8), 2 (i8), 3 (i16), 4 (i32), 5 (i64) or 8 (u16)",
         int{code});

  const auto sequences = load<uint64_t>(idx_.data + 18);
  const auto boundaries = load<uint64_t>(idx_.data + 26);
  const auto body = static_cast<uint64_t>(idx_.size - token_file::kHeaderBytes);
  // Both bounded by the file before they are multiplied, so that nothing can overflow.
  expect(sequences <= body / 12, prefix_, "sequence count", fmt::format("at most {}", body / 12), sequences);
  expect(boundaries >= 1 && boundaries <= body / 8, prefix_, "document count",
         fmt::format("1 to {}", body / 8), boundaries);
  const uint64_t needed = 12 * sequences + 8 * boundaries;
  expect(body != needed + sequences || sequences == 0, prefix_, "content", "text", "a multimodal dataset");
  expect(body == needed, prefix_, "file size", needed + token_file::kHeaderBytes, idx_.size);
  num_sequences_ = static_cast<int64_t>(sequences);
  num_documents_ = static_cast<int64_t>(boundaries) - 1;
}

void TokenFile::check_sequences() {
  const std::byte* lengths = idx_.data + token_file::kHeaderBytes;
  const std::byte* offsets = lengths + 4 * num_sequences_;
  const auto length_of = [&](int64_t s) { return int64_t{load<int32_t>(lengths + 4 * s)}; };
  const auto width = static_cast<uint64_t>(token_bytes_);
  // Bytes of .bin so far: at most its size after every block, so that no sum can come round to a legal one.
  uint64_t offset = 0;
  for (int64_t begin = 0; begin < num_sequences_; begin += kBlock) {
    const int64_t end = std::min(num_sequences_, begin + kBlock);
    const uint64_t start = offset;
    bool wrong = false;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t length = length_of(s);
      wrong |= length < 0;
      wrong |= load<uint64_t>(offsets + 8 * s) != offset;
      offset += static_cast<uint64_t>(length) * width;
    }
    if (!wrong && offset <= static_cast<uint64_t>(bin_.size)) continue;
    auto at = static_cast<int64_t>(start);
    for (int64_t s = begin; s < end; ++s) {
      const int64_t length = length_of(s);
      expect(length >= 0, prefix_, fmt::format("length of sequence {}", s), "0 or more", length);
      const auto stored = load<int64_t>(offsets + 8 * s);
      expect(stored == at, prefix_, fmt::format("offset of sequence {}", s), at, stored);
      at += length * token_bytes_;
      expect(at <= bin_.size, prefix_, fmt::format("end of sequence {}", s),
             fmt::format("at most {}, the size of {}.bin", bin_.size, prefix_), at);
    }
  }
  if (offset != static_cast<uint64_t>(bin_.size))
    throw DataError(
        "{}.bin: file size is {}, expected {} as {}.idx says; it is truncated or of another dataset: {}.",
        prefix_, bin_.size, offset, prefix_, kHint);
  num_tokens_ = bin_.size / token_bytes_;
}

void TokenFile::check_documents() {
  const std::byte* documents = idx_.data + token_file::kHeaderBytes + 12 * num_sequences_;
  const auto start_of = [&](int64_t d) { return load<int64_t>(documents + 8 * d); };
  expect(start_of(0) == 0, prefix_, "start of document 0", 0, start_of(0));
  int64_t previous = 0;
  for (int64_t begin = 0; begin <= num_documents_; begin += kBlock) {
    const int64_t end = std::min(num_documents_ + 1, begin + kBlock);
    int64_t before = previous;
    bool wrong = false;
    for (int64_t d = begin; d < end; ++d) {
      const int64_t start = start_of(d);
      wrong |= start < previous;
      previous = start;
    }
    if (!wrong && previous <= num_sequences_) continue;
    for (int64_t d = begin; d < end; ++d) {
      const int64_t start = start_of(d);
      expect(start >= before && start <= num_sequences_, prefix_,
             d == num_documents_ ? "end of the last document" : fmt::format("start of document {}", d),
             fmt::format("{} to {}", before, num_sequences_), start);
      before = start;
    }
  }
  expect(previous == num_sequences_, prefix_, "end of the last document", num_sequences_, previous);
}

}  // namespace transxssm
