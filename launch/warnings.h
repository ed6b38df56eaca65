// A warning of the run comes once, however many ranks have it.
#pragma once

#include "parallel/communicator.h"

namespace transxssm {

// Collective: rank 0 prints what the other ranks were warned of since the last call: each different text
// once, with the lowest rank that has it and how many others; nothing of what rank 0 has said before.
void print_warnings_of_all(Communicator& world);

}  // namespace transxssm
