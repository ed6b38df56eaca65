// Where a rank computes: the setting parallel.device, and --device of commands without a configuration.
#pragma once

#include <functional>
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

// precision.deterministic for NCCL, which picks the order of its sums by itself: sets the variables that fix
// it, with `set`, where `get` finds none. What a user has set otherwise stays, and the line returned says so;
// else it is empty.
std::string fix_order_of_sums(const std::function<const char*(const char*)>& get,
                              const std::function<void(const char*, const char*)>& set);

// From now on worker.world() takes tensors on the stream's device; the log says which device it is. Where
// `deterministic`, its sums come in one order (fix_order_of_sums). Collective.
void use_device_of(Stream& stream, Worker& worker, bool deterministic = true);

}  // namespace transxssm
