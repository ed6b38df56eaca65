// Scratch memory of an operation's threads: each has the buffers that one type lays out.
#pragma once

#include "runtime/stream.h"

namespace transxssm::cpu {

// Buffers(Carver&, const Sizes&) takes pointers from the carver. (thread) gives those of one thread.
template <class Buffers, class Sizes>
class ThreadBuffers {
 public:
  ThreadBuffers(Stream& stream, const Sizes& sizes)
      : sizes_(sizes), bytes_(count(sizes)), scratch_(stream, stream.num_threads() * bytes_) {}
  Buffers operator()(int thread) const {
    Carver own(reinterpret_cast<std::byte*>(scratch_.template data<uint8_t>()) + thread * bytes_, bytes_,
               true);
    return Buffers(own, sizes_);
  }

 private:
  static int64_t count(const Sizes& sizes) {
    Carver counter;
    Buffers(counter, sizes);
    return counter.used();
  }

  const Sizes& sizes_;
  int64_t bytes_;
  Scratch scratch_;
};

}  // namespace transxssm::cpu
