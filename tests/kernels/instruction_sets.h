// Runs code under the instruction sets that the kernels are compiled for and this CPU has.
#pragma once

#include <functional>

namespace transxssm {

// Calls fn() with all instruction sets, then without the best, and so on.
void for_instruction_sets(const std::function<void()>& fn);

}  // namespace transxssm
