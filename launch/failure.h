// What an exception means to a user: one sentence and an exit code of the README's table.
#pragma once

#include <string>

namespace transxssm {

struct Failure {
  int code = 0;         // of the process
  std::string message;  // empty: nothing is to be said
};

// The exception in flight. What is no Error of ours is the system's (a disk, a limit, memory) or a bug:
// code 1.
Failure current_failure();

}  // namespace transxssm
