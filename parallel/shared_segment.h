// Memory that processes of one host map together. It has no name in any file system, so nothing is left of it
// when its processes end, however they end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace transxssm {

class SharedSegment {
 public:
  // What another process needs to map it: the bytes of it may travel in a message. All zero: no segment.
  struct Handle {
    int64_t process = 0;
    int64_t descriptor = 0;
    uint64_t token = 0;  // the segment's own, so that a number used anew is noticed
    int64_t bytes = 0;
  };

  // Zeroed and page-aligned; empty where the system refuses.
  static std::optional<SharedSegment> create(int64_t bytes);
  // Of a process that has it still; empty where that cannot be reached: another host or container.
  static std::optional<SharedSegment> open(const Handle& handle);
  // The same mapping, for another thread of this process; it must not outlive this one.
  SharedSegment lend() const { return {handle_, mapping_, -1, false}; }

  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&& other) noexcept;
  ~SharedSegment();

  std::byte* data() const;
  int64_t bytes() const { return handle_.bytes; }
  const Handle& handle() const { return handle_; }

 private:
  SharedSegment(const Handle& handle, void* mapping, int descriptor, bool owner = true)
      : handle_(handle), mapping_(mapping), descriptor_(descriptor), owner_(owner) {}

  Handle handle_;
  void* mapping_;
  int descriptor_;  // of the maker, else -1
  bool owner_;      // of the mapping
};

// The same for all processes of one host, and hardly ever for others: from the host's name, the kernel's
// boot, and `salt`. Never 0.
uint64_t host_number(int salt = 0);

// Copies into memory that a process on another core reads next: past the caches, since a core far away gets
// lines sooner from memory than out of this one's cache. `to` is aligned to 64 bytes.
void write_shared(std::byte* to, const void* from, int64_t bytes);

}  // namespace transxssm
