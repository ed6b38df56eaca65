// The entry that libFuzzer calls, for a program with one target.
#include <cstdio>
#include <cstdlib>

#include "runtime/log.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  transxssm::set_log_rank(1);  // whose warnings do not fill the terminal
  return 0;
}

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
