#include "parallel/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <utility>

namespace transxssm {
namespace {

constexpr int64_t kHeader = 4096;  // a page, which holds the token

void* map(int descriptor, int64_t bytes) {
  void* mapping =
      mmap(nullptr, static_cast<size_t>(kHeader + bytes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  return mapping == MAP_FAILED ? nullptr : mapping;
}

}  // namespace

std::optional<SharedSegment> SharedSegment::create(int64_t bytes) {
  const int descriptor = memfd_create("transxssm", MFD_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  void* const mapping = ftruncate(descriptor, kHeader + bytes) == 0 ? map(descriptor, bytes) : nullptr;
  if (mapping == nullptr) {
    close(descriptor);
    return std::nullopt;
  }
  std::random_device random;
  const uint64_t token = (static_cast<uint64_t>(random()) << 32 | random()) | 1;
  *static_cast<uint64_t*>(mapping) = token;
  return SharedSegment({getpid(), descriptor, token, bytes}, mapping, descriptor);
}

std::optional<SharedSegment> SharedSegment::open(const Handle& handle) {
  if (handle.token == 0) return std::nullopt;
  const std::string path =
      "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.descriptor);
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return std::nullopt;
  struct stat status {};
  const bool fits =
      fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == kHeader + handle.bytes;
  void* const mapping = fits ? map(descriptor, handle.bytes) : nullptr;
  close(descriptor);
  if (mapping == nullptr) return std::nullopt;
  SharedSegment segment(handle, mapping, -1);
  if (*static_cast<const uint64_t*>(mapping) != handle.token) return std::nullopt;
  return segment;
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : handle_(other.handle_),
      mapping_(std::exchange(other.mapping_, nullptr)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      owner_(other.owner_) {}

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(mapping_, other.mapping_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(owner_, other.owner_);
  return *this;
}

SharedSegment::~SharedSegment() {
  if (mapping_ != nullptr && owner_) munmap(mapping_, static_cast<size_t>(kHeader + handle_.bytes));
  if (descriptor_ >= 0) close(descriptor_);
}

uint64_t host_number(int salt) {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return std::hash<std::string>{}(name + (' ' + boot) + ' ' + std::to_string(salt)) | 1;
}

std::byte* SharedSegment::data() const {
  return static_cast<std::byte*>(mapping_) + kHeader;
}

}  // namespace transxssm
