// What a lane (a thread of the emulated device) asks of the emulator. Called by gpu_instructions.h alone,
// from the fiber of a lane. Each call that a kernel gets wrong throws EmulationError, which ends the grid.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

namespace transxssm::cuda::emulated {

using Where = std::source_location;

// Fails unless `bytes` is the shared memory of the launch.
void* shared_memory(size_t bytes, const Where& where);

void sync_block(const Where& where);
void sync_warp(const Where& where);
void sync_named(int id, int threads, const Where& where);

enum class Shuffle : uint8_t { index, exclusive_or, up, down };
uint64_t shuffle(Shuffle kind, uint64_t value, int operand, const Where& where);
uint32_t ballot(bool predicate, const Where& where);
void mma_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const Where& where);
// `own`: the row of 8 elements that this lane's address names.
void load_matrices(uint32_t* registers, int matrices, uint4 own, bool transposed, const Where& where);

// 16 bytes; zeros where global is null.
struct PendingCopy {
  void* shared;
  const void* global;
};
// True where copies land late: it is then kept until its group is waited for.
bool postpone(const PendingCopy& copy);
void commit_copies();
// The next copy of a group older than the `open` newest ones; false when there is none.
bool next_due_copy(int open, PendingCopy& copy);

[[noreturn]] void misaligned(const void* p, const Where& where);
inline void require_aligned(const void* p, const Where& where) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) misaligned(p, where);
}
// 16 aligned bytes of the block's shared memory.
void require_shared(const void* p, const Where& where);

// Queues a grid whose every lane calls `kernel`.
cudaError_t launch(std::string name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t queue,
                   std::function<void()> kernel);

}  // namespace transxssm::cuda::emulated
