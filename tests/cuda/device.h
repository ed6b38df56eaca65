// The device of the tests of operations in a program that has CUDA's.
#pragma once

namespace transxssm {

// Registers the CUDA runtime and operations and makes cuda:0 the device of the tests
// (tests/support/device.h).
void use_cuda_for_tests();

}  // namespace transxssm
