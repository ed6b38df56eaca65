// transxssm checkpoint ls, inspect, verify.
#pragma once

#include <vector>

#include "launch/command.h"

namespace transxssm {

std::vector<Command> checkpoint_commands();

}  // namespace transxssm
