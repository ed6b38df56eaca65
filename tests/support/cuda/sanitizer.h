// What the sanitizers must be told of fibers and barriers. One of sanitizer_none.cc, sanitizer_address.cc and
// sanitizer_thread.cc is built, as the build's TRANSXSSM_SANITIZE says.
#pragma once

#include <cstddef>

namespace transxssm::cuda::emulated {

// One side of a switch: the host's thread, or a fiber.
struct SanitizerContext {
  void* handle = nullptr;      // the thread sanitizer's fiber
  void* fake_stack = nullptr;  // the address sanitizer's
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

// For a fiber about to run on that stack for the first time.
void begin_context(SanitizerContext& context, const void* stack, size_t stack_bytes);
// After the last switch away from it.
void end_context(SanitizerContext& context);
// For the thread that runs the fibers.
void adopt_thread(SanitizerContext& context);
// Around each switch: on the side that leaves, and on the side that arrives (from `from`).
void leave(SanitizerContext& from, const SanitizerContext& to, bool for_good);
void arrive(SanitizerContext& self, SanitizerContext& from);

// Orders what came before release(p) before what follows acquire(p).
void release(void* p);
void acquire(void* p);

// "none", "address" or "thread".
const char* sanitizer_name();

// Races between blocks of a grid show only where blocks share no stacks and no shared memory.
bool wants_fresh_memory();

}  // namespace transxssm::cuda::emulated
