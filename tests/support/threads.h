// Threads of each rank in tests of whole training runs.
#pragma once

#include <cstdlib>

namespace transxssm {

// TEST_THREADS, or one: isa.cmake runs the same tests with two.
inline int test_threads() {
  const char* text = std::getenv("TEST_THREADS");
  return text != nullptr ? std::atoi(text) : 1;
}

}  // namespace transxssm
