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
  // Up to `bytes` bytes of content; 0 at the end. DataError naming the file, and where it is damaged the
  // stored byte: it cannot be read, ends too early, goes on after the compressed data with something else
  // (zeros alone are padding: a warning), or is of a kind that is no text (foreign_format.h).
  virtual size_t read(char* out, size_t bytes) = 0;
  virtual int64_t stored_offset() const = 0;  // bytes consumed of the file as stored
};

// gzip (also the dictd .dz) and zstd by their first bytes, of any number of members or frames; anything else
// as it is. Symbolic links are followed; pipes are read. `read_bytes` are taken from the file at once.
std::unique_ptr<InputFile> open_input(const std::string& path, size_t read_bytes = size_t{1} << 18);

}  // namespace transxssm
