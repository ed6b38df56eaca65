// A file read from front to back, decompressed on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace transxssm {

class InputFile {
 public:
  virtual ~InputFile() = default;
  // Up to `bytes` bytes of content; 0 at the end. DataError naming the file where it cannot be read, is
  // corrupt or ends too early.
  virtual size_t read(char* out, size_t bytes) = 0;
  virtual int64_t stored_offset() const = 0;  // bytes consumed of the file as stored
};

// .zst by its name; gzip (also the dictd .dz) by its first bytes; anything else as it is.
std::unique_ptr<InputFile> open_input(const std::string& path);

}  // namespace transxssm
