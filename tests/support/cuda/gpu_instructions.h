// The instructions that C++ lacks, for the emulated device: the names of kernels/cuda/ptx/gpu_instructions.h.
// What touches shared or global memory is inline here, in the kernel's own compilation, so that the
// sanitizers see it with the line of the kernel; the rest is in emulator.cc and warp.cc.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "tests/support/cuda/lane.h"

#define __launch_bounds__(...)

// Of the lane that runs; one grid runs at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace transxssm::cuda {

using Where = std::source_location;

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
T& shared_memory(Where where = Where::current()) {
  return *static_cast<T*>(emulated::shared_memory(sizeof(T), where));
}

inline void sync_block(Where where = Where::current()) {
  emulated::sync_block(where);
}
inline void sync_warp(Where where = Where::current()) {
  emulated::sync_warp(where);
}
inline void sync_named(int id, int threads, Where where = Where::current()) {
  emulated::sync_named(id, threads, where);
}

template <class T>
T shuffle_from(emulated::Shuffle kind, T value, int operand, const Where& where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<T>(
        static_cast<uint32_t>(emulated::shuffle(kind, std::bit_cast<uint32_t>(value), operand, where)));
  else
    return std::bit_cast<T>(emulated::shuffle(kind, std::bit_cast<uint64_t>(value), operand, where));
}
template <class T>
T shuffle(T value, int lane, Where where = Where::current()) {
  return shuffle_from(emulated::Shuffle::index, value, lane, where);
}
template <class T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return shuffle_from(emulated::Shuffle::exclusive_or, value, mask, where);
}
template <class T>
T shuffle_up(T value, int lanes, Where where = Where::current()) {
  return shuffle_from(emulated::Shuffle::up, value, lanes, where);
}
template <class T>
T shuffle_down(T value, int lanes, Where where = Where::current()) {
  return shuffle_from(emulated::Shuffle::down, value, lanes, where);
}
inline uint32_t ballot(bool predicate, Where where = Where::current()) {
  return emulated::ballot(predicate, where);
}

inline float bits_to_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline uint32_t float_to_bits(float x) {
  return std::bit_cast<uint32_t>(x);
}
inline uint4 load_16_bytes(const void* p, Where where = Where::current()) {
  emulated::require_aligned(p, where);
  return *static_cast<const uint4*>(p);
}
inline void store_16_bytes(void* p, uint4 value, Where where = Where::current()) {
  emulated::require_aligned(p, where);
  *static_cast<uint4*>(p) = value;
}

// An asynchronous copy lands when the emulator says: at its issue, or at the wait for its group.
inline void land(const emulated::PendingCopy& copy) {
  *static_cast<uint4*>(copy.shared) =
      copy.global ? *static_cast<const uint4*>(copy.global) : make_uint4(0, 0, 0, 0);
}
inline void copy_async_or_zero(void* shared, const void* global, bool valid, Where where = Where::current()) {
  const emulated::PendingCopy copy = {shared, valid ? global : nullptr};
  emulated::require_shared(shared, where);
  if (valid) emulated::require_aligned(global, where);
  if (!emulated::postpone(copy)) land(copy);
}
inline void copy_async(void* shared, const void* global, Where where = Where::current()) {
  copy_async_or_zero(shared, global, true, where);
}
inline void commit_copies() {
  emulated::commit_copies();
}
template <int N>
void wait_copies() {
  static_assert(N >= 0 && N < 8);
  emulated::PendingCopy copy;
  while (emulated::next_due_copy(N, copy)) land(copy);
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        Where where = Where::current()) {
  emulated::mma_16x8x16(d, a, b, where);
}
template <int N>
void load_matrices(uint32_t (&r)[N], const void* row, bool transposed, const Where& where) {
  uint4 own = make_uint4(0, 0, 0, 0);
  if (static_cast<int>(threadIdx.x % 32) < 8 * N) {
    emulated::require_shared(row, where);
    own = *static_cast<const uint4*>(row);
  }
  emulated::load_matrices(r, N, own, transposed, where);
}
inline void load_matrix_x4(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  load_matrices(r, row, false, where);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  load_matrices(r, row, true, where);
}
inline void load_matrix_x2(uint32_t (&r)[2], const void* row, Where where = Where::current()) {
  load_matrices(r, row, false, where);
}
inline void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row, Where where = Where::current()) {
  load_matrices(r, row, true, where);
}

inline float fast_exp2(float x) {
  return std::exp2(x);
}
inline float fast_log2(float x) {
  return std::log2(x);
}
inline float reciprocal_sqrt(float x) {
  return 1.0f / std::sqrt(x);
}
inline void add_to_counter(int32_t* global, int32_t value) {
  __atomic_fetch_add(global, value, __ATOMIC_RELAXED);
}

template <class... Parameters>
cudaError_t launch_kernel(std::string_view name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                          size_t shared_bytes, cudaStream_t queue,
                          const std::tuple<Parameters...>& parameters) {
  return emulated::launch(std::string(name), grid, block, shared_bytes, queue,
                          [kernel, parameters] { std::apply(kernel, parameters); });
}

}  // namespace transxssm::cuda
