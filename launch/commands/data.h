// transxssm data train-tokenizer, tokenize, inspect.
#pragma once

#include <vector>

#include "launch/command.h"

namespace transxssm {

std::vector<Command> data_commands();

}  // namespace transxssm
