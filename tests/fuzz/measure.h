// What a target takes for an input: time of its thread on the processor, which other work on the machine does
// not change much, and memory.
#pragma once

#include <cstdint>
#include <string_view>

#include "tests/fuzz/fuzz.h"

namespace transxssm::fuzz {

struct Cost {
  double seconds = 0;
  int64_t bytes = 0;  // at the most, beyond what was held before
};

// Runs fn.
template <class Fn>
Cost cost_of(Fn&& fn);

// Memory that a parser may take for an input of `bytes` bytes: trees of small values have a node each.
constexpr int64_t allowed_bytes(size_t bytes) {
  return (int64_t{8} << 20) + 40 * static_cast<int64_t>(bytes);
}

double thread_seconds();
int64_t held_bytes();  // by operator new
int64_t peak_bytes();  // highest since the last reset
void reset_peak();

template <class Fn>
Cost cost_of(Fn&& fn) {
  reset_peak();
  const int64_t held = held_bytes();
  const double begin = thread_seconds();
  fn();
  return {thread_seconds() - begin, peak_bytes() - held};
}

}  // namespace transxssm::fuzz
