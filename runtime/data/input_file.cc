#include "runtime/data/input_file.h"

#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime/error.h"

namespace transxssm {
namespace {

// zlib reads files without a gzip header as they are.
class GzipOrPlain final : public InputFile {
 public:
  explicit GzipOrPlain(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (!file_) throw DataError("Cannot open {}: {}.", path, std::strerror(errno));
    gzbuffer(file_, 1 << 18);
  }
  ~GzipOrPlain() override { gzclose(file_); }
  size_t read(char* out, size_t bytes) override {
    const int count = gzread(file_, out, static_cast<unsigned>(bytes));
    int code = Z_OK;
    const char* message = gzerror(file_, &code);
    if (count < 0 || (static_cast<size_t>(count) < bytes && code == Z_BUF_ERROR))
      throw DataError("Cannot read {} near stored byte {}: {}.", path_, stored_offset(),
                      code == Z_BUF_ERROR ? "the file is cut short"
                      : code == Z_ERRNO   ? std::strerror(errno)
                                          : message);
    return static_cast<size_t>(count);
  }
  int64_t stored_offset() const override { return gzoffset(file_); }

 private:
  std::string path_;
  gzFile file_;
};

class Zstd final : public InputFile {
 public:
  explicit Zstd(const std::string& path)
      : path_(path),
        file_(std::fopen(path.c_str(), "rb")),
        context_(ZSTD_createDCtx()),
        buffer_(ZSTD_DStreamInSize()) {
    if (!file_) throw DataError("Cannot open {}: {}.", path, std::strerror(errno));
  }
  size_t read(char* out, size_t bytes) override {
    ZSTD_outBuffer to = {out, bytes, 0};
    while (to.pos == 0) {
      if (from_.pos == from_.size) {
        const size_t count = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
        if (std::ferror(file_.get())) throw DataError("Cannot read {}: {}.", path_, std::strerror(errno));
        offset_ += static_cast<int64_t>(count);
        from_ = {buffer_.data(), count, 0};
        if (count == 0 && !flushed_)
          throw DataError("Cannot read {} near stored byte {}: the file is cut short.", path_, offset_);
        if (count == 0) return 0;
      }
      const size_t left = ZSTD_decompressStream(context_.get(), &to, &from_);
      if (ZSTD_isError(left))
        throw DataError("Cannot read {} near stored byte {}: {}.", path_, offset_, ZSTD_getErrorName(left));
      flushed_ = left == 0;  // at the end of a frame
    }
    return to.pos;
  }
  int64_t stored_offset() const override { return offset_; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct FreeContext {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::unique_ptr<ZSTD_DCtx, FreeContext> context_;
  std::vector<char> buffer_;
  ZSTD_inBuffer from_ = {nullptr, 0, 0};
  int64_t offset_ = 0;
  bool flushed_ = true;
};

}  // namespace

std::unique_ptr<InputFile> open_input(const std::string& path) {
  if (path.ends_with(".zst")) return std::make_unique<Zstd>(path);
  return std::make_unique<GzipOrPlain>(path);
}

}  // namespace transxssm
