// transxssm generate.
#pragma once

#include "launch/command.h"

namespace transxssm {

Command generate_command();

}  // namespace transxssm
