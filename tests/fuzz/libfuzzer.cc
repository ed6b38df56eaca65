// The entry that libFuzzer calls, for a program with one target.
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace transxssm::fuzz;
  try {
    run_target(targets().front(), {reinterpret_cast<const char*>(data), size});
  } catch (const Fault& fault) {
    std::fprintf(stderr, "FAULT: %s\n", fault.what.c_str());
    std::abort();
  }
  return 0;
}
