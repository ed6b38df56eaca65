// A file system that counts the calls it passes on and, before the n-th, calls a function: tests end the
// process there.
#pragma once

#include <functional>
#include <utility>

#include "runtime/file_system.h"

namespace transxssm {

class CountingFileSystem : public FileSystem {
 public:
  CountingFileSystem(FileSystem& files, int64_t at, std::function<void()> act)
      : files_(files), at_(at), act_(std::move(act)) {}
  int64_t operations() const { return count_; }

  std::unique_ptr<WritableFile> create(const std::string& path) override {
    step();
    return std::make_unique<Writer>(*this, files_.create(path));
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    step();
    return files_.open(path);
  }
  void create_directory(const std::string& path, int mode) override {
    step();
    files_.create_directory(path, mode);
  }
  void set_default_mode(const std::string& directory) override {
    step();
    files_.set_default_mode(directory);
  }
  void rename(const std::string& from, const std::string& to) override {
    step();
    files_.rename(from, to);
  }
  void remove(const std::string& path) override {
    step();
    files_.remove(path);
  }
  void sync_directory(const std::string&) override { step(); }
  std::vector<std::string> list(const std::string& path) override {
    step();
    return files_.list(path);
  }
  bool exists(const std::string& path) override {
    step();
    return files_.exists(path);
  }
  bool is_directory(const std::string& path) override {
    step();
    return files_.is_directory(path);
  }
  int64_t free_bytes(const std::string& path) override {
    step();
    return files_.free_bytes(path);
  }

 private:
  class Writer : public WritableFile {
   public:
    Writer(CountingFileSystem& files, std::unique_ptr<WritableFile> file)
        : files_(files), file_(std::move(file)) {}
    void write(std::span<const std::byte> bytes) override {
      // In two calls, so that the process also ends in the middle.
      file_->write(bytes.first(bytes.size() / 2));
      files_.step();
      file_->write(bytes.subspan(bytes.size() / 2));
    }
    void sync() override { files_.step(); }
    void close() override {
      files_.step();
      file_->close();
    }

   private:
    CountingFileSystem& files_;
    std::unique_ptr<WritableFile> file_;
  };

  void step() {
    if (++count_ == at_) act_();
  }

  FileSystem& files_;
  int64_t at_;
  std::function<void()> act_;
  int64_t count_ = 0;
};

}  // namespace transxssm
