#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include "tests/support/cuda/sanitizer.h"

namespace transxssm::cuda::emulated {

// The stack may hold the marks of frames that a failed kernel never left.
void begin_context(SanitizerContext& context, const void* stack, size_t stack_bytes) {
  context = {nullptr, nullptr, stack, stack_bytes};
  __asan_unpoison_memory_region(stack, stack_bytes);
}
void end_context(SanitizerContext&) {}
void adopt_thread(SanitizerContext&) {}

void leave(SanitizerContext& from, const SanitizerContext& to, bool for_good) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
}
// The host's stack is known once the first fiber arrives from it.
void arrive(SanitizerContext& self, SanitizerContext& from) {
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack, &stack, &stack_bytes);
  from.stack = stack;
  from.stack_bytes = stack_bytes;
}

void release(void*) {}
void acquire(void*) {}
const char* sanitizer_name() {
  return "address";
}
bool wants_fresh_memory() {
  return false;
}

}  // namespace transxssm::cuda::emulated
