// What this build's sanitizers are told of memory and threads that they cannot follow by themselves. In a
// build without them all of it is nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define TRANSXSSM_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer)
#define TRANSXSSM_THREAD_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(TRANSXSSM_ADDRESS_SANITIZER)
#define TRANSXSSM_ADDRESS_SANITIZER 1
#endif
#if defined(__SANITIZE_THREAD__) && !defined(TRANSXSSM_THREAD_SANITIZER)
#define TRANSXSSM_THREAD_SANITIZER 1
#endif

#ifdef TRANSXSSM_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace transxssm {

// By how much limits on time are widened where a sanitizer watches.
#if defined(TRANSXSSM_ADDRESS_SANITIZER) || defined(TRANSXSSM_THREAD_SANITIZER)
inline constexpr int kSlower = 10;
#else
inline constexpr int kSlower = 1;
#endif

#ifdef TRANSXSSM_ADDRESS_SANITIZER
inline constexpr bool kMemoryIsChecked = true;
// Until it is allowed again, the host must not touch these bytes.
inline void forbid_memory(const std::byte* begin, int64_t bytes) {
  ASAN_POISON_MEMORY_REGION(begin, static_cast<size_t>(bytes));
}
inline void allow_memory(const std::byte* begin, int64_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(begin, static_cast<size_t>(bytes));
}
#else
inline constexpr bool kMemoryIsChecked = false;
inline void forbid_memory(const std::byte*, int64_t) {}
inline void allow_memory(const std::byte*, int64_t) {}
#endif

}  // namespace transxssm
