// One message in memory that sender and receiver share: the sender copies it in and goes on with its work,
// the receiver copies it out when it wants it. A message between processes would otherwise move only while
// its sender looks at it.
#pragma once

#include <atomic>
#include <cstring>

#include "parallel/shared_segment.h"
#include "runtime/error.h"

namespace transxssm {

// What the receiver is told, by a message of its own.
struct SharedNotice {
  SharedSegment::Handle segment;
  int64_t bytes = 0;  // of the message
};

// A segment that holds one message at a time, on either side.
class SharedMessage {
 public:
  static int64_t segment_bytes(int64_t message_bytes) { return kHeader + message_bytes; }

  explicit SharedMessage(SharedSegment segment) : segment_(std::move(segment)) {}
  const SharedSegment::Handle& handle() const { return segment_.handle(); }
  int64_t capacity() const { return segment_.bytes() - kHeader; }
  // Put and not yet taken.
  bool full() const { return flag().load(std::memory_order_acquire) != 0; }
  void put(const void* data, int64_t bytes) {
    write_shared(segment_.data() + kHeader, data, bytes);
    flag().store(1, std::memory_order_release);
  }
  void take(void* data, int64_t bytes) {
    TRANSXSSM_CHECK(full(), "no message of {} bytes", bytes);
    std::memcpy(data, segment_.data() + kHeader, static_cast<size_t>(bytes));
    flag().store(0, std::memory_order_release);
  }

 private:
  static constexpr int64_t kHeader = 64;

  std::atomic_ref<int32_t> flag() const {
    return std::atomic_ref<int32_t>(*reinterpret_cast<int32_t*>(segment_.data()));
  }

  SharedSegment segment_;
};

}  // namespace transxssm
