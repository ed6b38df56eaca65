#include <sanitizer/tsan_interface.h>

#include "tests/support/cuda/sanitizer.h"

namespace transxssm::cuda::emulated {

void begin_context(SanitizerContext& context, const void*, size_t) {
  context.handle = __tsan_create_fiber(0);
}
void end_context(SanitizerContext& context) {
  __tsan_destroy_fiber(context.handle);
}
void adopt_thread(SanitizerContext& context) {
  context.handle = __tsan_get_current_fiber();
}

// Switching orders nothing: lanes are ordered by their barriers alone.
void leave(SanitizerContext&, const SanitizerContext& to, bool) {
  __tsan_switch_to_fiber(to.handle, __tsan_switch_to_fiber_no_sync);
}
void arrive(SanitizerContext&, SanitizerContext&) {}

void release(void* p) {
  __tsan_release(p);
}
void acquire(void* p) {
  __tsan_acquire(p);
}
const char* sanitizer_name() {
  return "thread";
}
bool wants_fresh_memory() {
  return true;
}

}  // namespace transxssm::cuda::emulated
