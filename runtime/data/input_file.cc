#include "runtime/data/input_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/data/foreign_format.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

// The bytes as stored, through a buffer that can be looked into.
class Stored {
 public:
  Stored(const std::string& path, size_t buffer_bytes)
      : path_(path),
        fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)),
        step_(buffer_bytes),
        buffer_(std::max(buffer_bytes, kMaxPeek)) {
    TRANSXSSM_CHECK(buffer_bytes > 0);
    if (fd_ < 0) throw DataError("Cannot open {}: {}.", path, std::strerror(errno));
  }
  ~Stored() { ::close(fd_); }
  Stored(const Stored&) = delete;
  Stored& operator=(const Stored&) = delete;

  static constexpr size_t kMaxPeek = 18;  // the longest header, that of a zstd frame
  // The bytes at hand, at least `bytes` of them (at most kMaxPeek) unless the file ends.
  std::string_view peek(size_t bytes = 1) {
    while (end_ - begin_ < bytes && !ended_) {
      if (begin_ > 0) {
        std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
      }
      const ssize_t count = ::read(fd_, buffer_.data() + end_, std::min(step_, buffer_.size() - end_));
      if (count < 0 && errno != EINTR) throw DataError("Cannot read {}: {}.", path_, std::strerror(errno));
      if (count > 0) end_ += static_cast<size_t>(count);
      ended_ = count == 0;
    }
    return {buffer_.data() + begin_, end_ - begin_};
  }
  void consume(size_t bytes) {
    begin_ += bytes;
    offset_ += static_cast<int64_t>(bytes);
  }
  int64_t offset() const { return offset_; }
  const std::string& path() const { return path_; }

  // After the end of compressed data: true at the end of the file. Zeros up to there are padding, as tapes
  // and disk images leave it; anything else but a `more` would vanish without a word.
  bool at_end(bool (*more)(std::string_view), const char* format) {
    if (more(peek(4))) return false;
    const int64_t from = offset_;
    for (std::string_view rest = peek(); !rest.empty(); rest = peek()) {
      const size_t zeros = std::min(rest.find_first_not_of('\0'), rest.size());
      consume(zeros);
      if (zeros == rest.size()) continue;
      throw DataError(
          "{}: after the {} data that ends at stored byte {} comes something else (byte 0x{:02X} at {}); the "
          "file is damaged or put together from different kinds: decompress the parts by themselves.",
          path_, format, from, static_cast<unsigned char>(rest[zeros]), offset_);
    }
    if (offset_ > from)
      log_warning("{}: {} zero bytes after the {} data are padding and were ignored.", path_, offset_ - from,
                  format);
    return true;
  }
  [[noreturn]] void damaged(const std::string& reason) const {
    throw DataError("Cannot read {} near stored byte {}: {}.", path_, offset_, reason);
  }

 private:
  std::string path_;
  int fd_;
  size_t step_;  // bytes read at once
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
  int64_t offset_ = 0;
  bool ended_ = false;
};

bool is_gzip(std::string_view bytes) {
  return bytes.starts_with("\x1F\x8B");
}

// A frame, or one that decoders skip.
bool is_zstd(std::string_view bytes) {
  return bytes.starts_with("\x28\xB5\x2F\xFD") ||
         (bytes.size() >= 4 && (bytes[0] & 0xF0) == 0x50 && bytes.substr(1, 3) == "\x2A\x4D\x18");
}

// What turns stored bytes into content.
class Decoder {
 public:
  explicit Decoder(Stored& stored) : stored_(stored) {}
  virtual ~Decoder() = default;
  virtual size_t read(char* out, size_t bytes) = 0;

 protected:
  Stored& stored_;
};

class Plain final : public Decoder {
 public:
  using Decoder::Decoder;
  size_t read(char* out, size_t bytes) override {
    const std::string_view held = stored_.peek();
    const size_t count = std::min(bytes, held.size());
    std::memcpy(out, held.data(), count);
    stored_.consume(count);
    return count;
  }
};

class Gzip final : public Decoder {
 public:
  explicit Gzip(Stored& stored) : Decoder(stored) {
    TRANSXSSM_CHECK(inflateInit2(&stream_, MAX_WBITS + 16) == Z_OK);
  }
  ~Gzip() override { inflateEnd(&stream_); }
  size_t read(char* out, size_t bytes) override {
    stream_.next_out = reinterpret_cast<Bytef*>(out);
    stream_.avail_out = static_cast<uInt>(bytes);
    while (stream_.avail_out == bytes) {
      if (!in_member_) {
        if (stored_.at_end(is_gzip, "gzip")) return 0;
        inflateReset(&stream_);
        in_member_ = true;
      }
      const std::string_view held = stored_.peek();
      if (held.empty()) stored_.damaged("the file is cut short");
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(held.data()));
      stream_.avail_in = static_cast<uInt>(held.size());
      const int code = inflate(&stream_, Z_NO_FLUSH);
      stored_.consume(held.size() - stream_.avail_in);
      if (code == Z_STREAM_END)
        in_member_ = false;
      else if (code != Z_OK && code != Z_BUF_ERROR)
        stored_.damaged(stream_.msg ? stream_.msg : "the gzip data is damaged");
    }
    return bytes - stream_.avail_out;
  }

 private:
  z_stream stream_{};
  bool in_member_ = true;
};

class Zstd final : public Decoder {
 public:
  explicit Zstd(Stored& stored) : Decoder(stored), context_(ZSTD_createDCtx()) {}
  size_t read(char* out, size_t bytes) override {
    ZSTD_outBuffer to = {out, bytes, 0};
    while (to.pos == 0) {
      if (!in_frame_) {
        if (stored_.at_end(is_zstd, "zstd")) return 0;
        begin_frame();
      }
      const std::string_view held = stored_.peek();
      ZSTD_inBuffer from = {held.data(), held.size(), 0};
      const size_t left = ZSTD_decompressStream(context_.get(), &to, &from);
      stored_.consume(from.pos);
      frame_bytes_ += to.pos;
      if (ZSTD_isError(left))
        stored_.damaged(ZSTD_getErrorCode(left) == ZSTD_error_frameParameter_windowTooLarge
                            ? "it was made with `zstd --long`; decompress it with `zstd -d --long=31`"
                            : ZSTD_getErrorName(left));
      in_frame_ = left != 0;
      if (in_frame_ && held.empty() && to.pos == 0) stored_.damaged("the file is cut short");
      if (!in_frame_ && said_bytes_ && frame_bytes_ != *said_bytes_)
        stored_.damaged(
            fmt::format("a zstd frame holds {} bytes, but was made of {}", frame_bytes_, *said_bytes_));
    }
    return to.pos;
  }

 private:
  // The library compares the two itself, but not where it decodes piece by piece and the last block is empty.
  void begin_frame() {
    in_frame_ = true;
    frame_bytes_ = 0;
    const std::string_view header = stored_.peek(Stored::kMaxPeek);
    const unsigned long long said = ZSTD_getFrameContentSize(header.data(), header.size());
    said_bytes_.reset();
    if (said != ZSTD_CONTENTSIZE_UNKNOWN && said != ZSTD_CONTENTSIZE_ERROR) said_bytes_ = said;
  }

  struct FreeContext {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<ZSTD_DCtx, FreeContext> context_;
  bool in_frame_ = false;
  uint64_t frame_bytes_ = 0;
  std::optional<uint64_t> said_bytes_;  // by its header, which need not say
};

// Looks at the first bytes of the content before it hands them out.
class TextInput final : public InputFile {
 public:
  TextInput(const std::string& path, size_t read_bytes) : stored_(path, read_bytes) {
    const std::string_view head = stored_.peek(4);
    if (is_gzip(head))
      decoder_ = std::make_unique<Gzip>(stored_);
    else if (is_zstd(head))
      decoder_ = std::make_unique<Zstd>(stored_);
    else
      decoder_ = std::make_unique<Plain>(stored_);
    compressed_ = is_gzip(head) || is_zstd(head);
    if (path.ends_with(".zst") && !compressed_ && !head.empty())
      stored_.damaged("it is named .zst but is not zstd");
  }
  size_t read(char* out, size_t bytes) override {
    if (!checked_) check();
    if (head_begin_ == head_.size()) return decoder_->read(out, bytes);
    const size_t count = std::min(bytes, head_.size() - head_begin_);
    std::memcpy(out, head_.data() + head_begin_, count);
    head_begin_ += count;
    return count;
  }
  int64_t stored_offset() const override { return stored_.offset(); }

 private:
  void check() {
    checked_ = true;
    head_.resize(kForeignHeadBytes);
    size_t held = 0;
    while (held < head_.size()) {
      const size_t count = decoder_->read(head_.data() + held, head_.size() - held);
      if (count == 0) break;
      held += count;
    }
    head_.resize(held);
    const std::string_view head(head_.data(), held);
    refuse_foreign_format(head, stored_.path(), compressed_);
  }

  Stored stored_;
  std::unique_ptr<Decoder> decoder_;
  bool compressed_ = false, checked_ = false;
  std::vector<char> head_;
  size_t head_begin_ = 0;
};

}  // namespace

std::unique_ptr<InputFile> open_input(const std::string& path, size_t read_bytes) {
  return std::make_unique<TextInput>(path, read_bytes);
}

}  // namespace transxssm
