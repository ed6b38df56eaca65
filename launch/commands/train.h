// transxssm train.
#pragma once

#include "launch/command.h"

namespace transxssm {

Command train_command();

}  // namespace transxssm
