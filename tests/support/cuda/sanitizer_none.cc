#include "tests/support/cuda/sanitizer.h"

namespace transxssm::cuda::emulated {

void begin_context(SanitizerContext&, const void*, size_t) {}
void end_context(SanitizerContext&) {}
void adopt_thread(SanitizerContext&) {}
void leave(SanitizerContext&, const SanitizerContext&, bool) {}
void arrive(SanitizerContext&, SanitizerContext&) {}
void release(void*) {}
void acquire(void*) {}
const char* sanitizer_name() {
  return "none";
}
bool wants_fresh_memory() {
  return false;
}

}  // namespace transxssm::cuda::emulated
