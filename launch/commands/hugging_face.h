// transxssm checkpoint export-hf, import-hf.
#pragma once

#include <vector>

#include "launch/command.h"

namespace transxssm {

std::vector<Command> hugging_face_commands();

}  // namespace transxssm
