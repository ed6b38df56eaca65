// What every communicator must do, written once: run on threads as ranks, on MPI processes, and with tensors
// in the memory of a device by every transport.
#pragma once

#include <span>

#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace transxssm {

struct CommunicatorCase {
  const char* name;
  void (*run)(Communicator& world);  // on every rank; reports through GoogleTest
  // What NCCL does not promise: sums of bf16 in f32, any pattern of messages (not only from one rank to
  // another on a communicator of their own), errors where the ranks disagree.
  bool beyond_nccl = false;
};

std::span<const CommunicatorCase> communicator_cases();

// While it lives, the cases that this thread runs place their tensors on the stream's device. Without
// `rank_ordered` sums may differ from the rank-ordered ones in their last bits.
class PlaceOnDevice {
 public:
  explicit PlaceOnDevice(Stream& stream, bool rank_ordered = true);
  ~PlaceOnDevice();
};

}  // namespace transxssm
