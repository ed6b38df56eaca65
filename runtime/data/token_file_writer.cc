#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/crc32c.h"
#include "runtime/data/token_file.h"
#include "runtime/data/token_file_format.h"
#include "runtime/error.h"

namespace transxssm {

static_assert(std::endian::native == std::endian::little, "token files are read and written as they lie");

// A file written through a buffer.
class TokenFileWriter::Spool {
 public:
  Spool(OutputFiles& outputs, std::string path) : path_(std::move(path)), file_(outputs.create(path_)) {}
  void append(const void* data, size_t bytes) {
    const auto* p = static_cast<const std::byte*>(data);
    crc_ = crc32c({p, bytes}, crc_);
    if (bytes >= kBuffer) {
      flush();
      file_->write({p, bytes});
      return;
    }
    if (buffer_.size() + bytes > kBuffer) flush();
    buffer_.insert(buffer_.end(), p, p + bytes);
  }
  template <class T>
  void append_value(T value) {
    append(&value, sizeof value);
  }
  void close(bool sync) {
    flush();
    if (sync) file_->sync();
    file_->close();
    file_.reset();
  }
  const std::string& path() const { return path_; }
  uint32_t crc() const { return crc_; }

 private:
  static constexpr size_t kBuffer = 1 << 18;
  void flush() {
    if (!buffer_.empty()) file_->write(buffer_);
    buffer_.clear();
  }
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  std::vector<std::byte> buffer_;
  uint32_t crc_ = 0;
};

namespace {

enum Target : size_t { kBin, kJson, kIdx };  // without .idx there is no dataset: it comes last

// Calls fn(span of T) for the whole content of a file of T, block by block.
template <class T, class Fn>
void for_blocks(FileSystem& files, const std::string& path, Fn&& fn) {
  const auto file = files.open(path);
  std::vector<T> block(1 << 15);
  const auto block_bytes = static_cast<int64_t>(block.size() * sizeof(T));
  for (int64_t at = 0; at < file->size(); at += block_bytes) {
    const auto bytes = static_cast<size_t>(std::min(block_bytes, file->size() - at));
    file->read(at, std::as_writable_bytes(std::span(block)).first(bytes));
    fn(std::span<const T>(block.data(), bytes / sizeof(T)));
  }
}

}  // namespace

TokenFileWriter::TokenFileWriter(FileSystem& files, const std::string& prefix, int64_t vocab_size,
                                 bool overwrite, std::vector<std::string> inputs)
    : files_(files),
      vocab_size_(vocab_size),
      token_bytes_(vocab_size < token_file::kSmallVocabulary ? 2 : 4) {
  if (vocab_size < 1 || vocab_size > std::numeric_limits<int32_t>::max())
    throw DataError("A vocabulary of {} ids cannot be stored: token files hold ids of up to 31 bits.",
                    vocab_size);
  outputs_ = std::make_unique<OutputFiles>(
      files, std::vector<std::string>{prefix + ".bin", prefix + ".json", prefix + ".idx"},
      OutputRules{.overwrite = overwrite, .inputs = std::move(inputs)});
  bin_ = std::make_unique<Spool>(*outputs_, outputs_->temporary(kBin));
  lengths_ = std::make_unique<Spool>(*outputs_, outputs_->scratch());
  documents_ = std::make_unique<Spool>(*outputs_, outputs_->scratch());
  documents_->append_value<int64_t>(0);
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::add_tokens(std::span<const int32_t> tokens) {
  std::array<uint16_t, 4096> narrow;
  while (!tokens.empty()) {
    // The length of a sequence is an i32; a longer one goes on in the next sequence of its document.
    const int64_t room = std::numeric_limits<int32_t>::max() - sequence_tokens_;
    if (room == 0) {
      end_sequence();
      continue;
    }
    const size_t count = std::min({tokens.size(), narrow.size(), static_cast<size_t>(room)});
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = tokens[i];
      if (id < 0 || id >= vocab_size_)
        throw DataError("Token id {} of document {} is outside the vocabulary of {}.", id, num_documents_,
                        vocab_size_);
      max_token_id_ = std::max(max_token_id_, id);
      narrow[i] = static_cast<uint16_t>(id);
    }
    if (token_bytes_ == 2)
      bin_->append(narrow.data(), count * sizeof(uint16_t));
    else
      bin_->append(tokens.data(), count * sizeof(int32_t));
    sequence_tokens_ += static_cast<int64_t>(count);
    num_tokens_ += static_cast<int64_t>(count);
    tokens = tokens.subspan(count);
  }
}

void TokenFileWriter::end_sequence() {
  lengths_->append_value(static_cast<int32_t>(sequence_tokens_));
  sequence_tokens_ = 0;
  ++num_sequences_;
}

void TokenFileWriter::end_document() {
  if (sequence_tokens_ > 0) end_sequence();
  documents_->append_value(num_sequences_);
  ++num_documents_;
}

void TokenFileWriter::finish(TokenFileFacts facts) {
  TRANSXSSM_CHECK(!finished_ && sequence_tokens_ == 0, "finish() after end_document()");
  finished_ = true;
  bin_->close(true);
  lengths_->close(false);
  documents_->close(false);

  Spool index(*outputs_, outputs_->temporary(kIdx));
  index.append(token_file::kMagic.data(), token_file::kMagic.size());
  index.append_value(token_file::kVersion);
  index.append_value(token_bytes_ == 2 ? TokenType::u16 : TokenType::i32);
  index.append_value(static_cast<uint64_t>(num_sequences_));
  index.append_value(static_cast<uint64_t>(num_documents_ + 1));
  for_blocks<int32_t>(files_, lengths_->path(), [&](std::span<const int32_t> lengths) {
    index.append(lengths.data(), lengths.size_bytes());
  });
  int64_t offset = 0;
  for_blocks<int32_t>(files_, lengths_->path(), [&](std::span<const int32_t> lengths) {
    for (const int32_t length : lengths) {
      index.append_value(offset);
      offset += length * token_bytes_;
    }
  });
  for_blocks<int64_t>(files_, documents_->path(), [&](std::span<const int64_t> documents) {
    index.append(documents.data(), documents.size_bytes());
  });
  index.close(true);

  const nlohmann::json json = {
      {"tokens", num_tokens_},          {"sequences", num_sequences_},
      {"documents", num_documents_},    {"index_digest", token_file::digest(index.crc(), num_tokens_)},
      {"text_bytes", facts.text_bytes}, {"max_token_id", max_token_id_},
      {"vocab_size", vocab_size_},      {"end_of_document", facts.end_of_document},
      {"tokenizer", facts.tokenizer},   {"tokenizer_digest", facts.tokenizer_digest}};
  Spool side(*outputs_, outputs_->temporary(kJson));
  // A path need not be UTF-8.
  const std::string text = json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  side.append(text.data(), text.size());
  side.close(true);

  outputs_->publish();
}

}  // namespace transxssm
