// Which kinds of devices this program was built with.
#pragma once

namespace transxssm {

// Registers the devices, operations and transports of this build beside the CPU's. Once, at the program's
// start, before anything asks for a device. backends_cpu.cc or backends_cuda.cc, as CMake was told.
void register_backends();

}  // namespace transxssm
