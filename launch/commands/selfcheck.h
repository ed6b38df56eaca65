#pragma once

#include "launch/command.h"

namespace transxssm {

Command selfcheck_command();

}  // namespace transxssm
