// `transxssm bench train|length|kernels`.
#pragma once

#include <vector>

#include "launch/command.h"

namespace transxssm {

std::vector<Command> bench_commands();

}  // namespace transxssm
