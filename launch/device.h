// Where a rank computes: the setting parallel.device, and --device of commands without a configuration.
#pragma once

#include <string>

#include "launch/config.h"
#include "launch/worker.h"
#include "runtime/stream.h"

namespace transxssm {

// True of "auto", "cpu", "cuda" and "cuda:N".
bool is_device_choice(const std::string& choice);

// "auto": a GPU where this program and this host have one, else the CPU. "cuda": the ranks of a host take its
// GPUs in turn. "cuda:N": that GPU for every rank of the host. Throws DeviceError where there is none such.
Device choose_device(const std::string& choice, int local_rank);

// Replaces precision.compute: auto by bf16 where every rank of the job has instructions for it (GPUs, and
// processors with AVX512_BF16), by f32 elsewhere. Returns a line that says which and why. Collective; before
// use_device_of.
std::string settle_compute(TrainConfig& config, const Device& device, Communicator& world);

// From now on worker.world() takes tensors on the stream's device; the log says which device it is.
// Collective.
void use_device_of(Stream& stream, Worker& worker);

}  // namespace transxssm
