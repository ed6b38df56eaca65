// What a kernel source is written in. The same source is built by nvcc for the GPU and by g++ for the
// emulated device of the tests; all that C++ lacks comes from <gpu_instructions.h>, which the build finds in
// kernels/cuda/ptx (PTX and intrinsics) or in tests/support/cuda (their definition for the host).
//
// From <gpu_instructions.h>, in namespace transxssm::cuda (T: any type of 4 or 8 bytes):
//   T& shared_memory<T>()                 the block's dynamic shared memory, aligned to 128 bytes
//   sync_block() sync_warp()              barriers of all threads; of a warp
//   sync_named(id, threads)               bar.sync id 1..15
//   T shuffle(v, lane)                    all 32 lanes take part, as in
//     shuffle_xor(v, mask) shuffle_up(v, n) shuffle_down(v, n)
//   uint32_t ballot(bool)
//   copy_async(shared, global)            16 bytes
//   copy_async_or_zero(shared, global, valid)   zeros where not valid
//   commit_copies()                       closes a group
//   wait_copies<N>()                      waits until at most N groups of this thread are open
//   mma_16x8x16(d, a, b)                  d += a b, bf16 operands, fp32 sums (mma.sync.m16n8k16.row.col)
//   load_matrix_x4(r, row)                ldmatrix: lane l gives row l % 8 of matrix l / 8
//     load_matrix_x4_transposed(r, row)
//   load_matrix_x2(r, row)                rows of lanes 0 to 15 count
//     load_matrix_x2_transposed(r, row)
//   fast_exp2(x) fast_log2(x) reciprocal_sqrt(x)   the GPU's approximations
//   uint4 load_16_bytes(p) store_16_bytes(p, v)    aligned to 16 bytes
//   add_to_counter(int32_t* global, int32_t)       integer atomics: their order never matters
// Each barrier, copy, commit and wait stands alone on its line: tests/cuda/barriers.py leaves them out one by
// one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gpu_instructions.h>

#include <cstdint>
#include <tuple>

#include "kernels/cuda/launch.h"

namespace transxssm::cuda {

using bf16 = __nv_bfloat16;

inline constexpr int kWarp = 32;  // lanes

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
// Nearest, ties to even.
__device__ inline bf16 to_bf16(float x) {
  return __float2bfloat16_rn(x);
}
// A float as an element of type T.
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}

// Two bf16 in one register, as the matrix instructions take them: `low` in bits 0 to 15.
__device__ inline uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(to_bf16(low))) |
         static_cast<uint32_t>(__bfloat16_as_ushort(to_bf16(high))) << 16;
}
__device__ inline float2 unpack_bf16(uint32_t pair) {
  return make_float2(bits_to_float(pair << 16), bits_to_float(pair & 0xffff0000u));
}

// Natural exponential and logarithm by the GPU's base-2 approximations: a few units in the last place for
// arguments of moderate size.
__device__ inline float fast_exp(float x) {
  return fast_exp2(x * 1.4426950408889634f);
}
__device__ inline float fast_log(float x) {
  return fast_log2(x) * 0.6931471805599453f;
}

// N consecutive elements by 16-byte accesses; p is aligned to 16 bytes and N sizeof(T) a multiple of 16.
template <int N>
__device__ inline void load_vector(const float* p, float (&values)[N]) {
  static_assert(N % 4 == 0);
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const uint4 bits = load_16_bytes(p + i);
    values[i] = bits_to_float(bits.x);
    values[i + 1] = bits_to_float(bits.y);
    values[i + 2] = bits_to_float(bits.z);
    values[i + 3] = bits_to_float(bits.w);
  }
}
template <int N>
__device__ inline void load_vector(const bf16* p, float (&values)[N]) {
  static_assert(N % 8 == 0);
#pragma unroll
  for (int i = 0; i < N; i += 8) {
    const uint4 bits = load_16_bytes(p + i);
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = unpack_bf16(pairs[j]);
      values[i + 2 * j] = pair.x;
      values[i + 2 * j + 1] = pair.y;
    }
  }
}
template <int N>
__device__ inline void store_vector(float* p, const float (&values)[N]) {
  static_assert(N % 4 == 0);
#pragma unroll
  for (int i = 0; i < N; i += 4)
    store_16_bytes(p + i, make_uint4(float_to_bits(values[i]), float_to_bits(values[i + 1]),
                                     float_to_bits(values[i + 2]), float_to_bits(values[i + 3])));
}
template <int N>
__device__ inline void store_vector(bf16* p, const float (&values)[N]) {
  static_assert(N % 8 == 0);
#pragma unroll
  for (int i = 0; i < N; i += 8)
    store_16_bytes(
        p + i, make_uint4(pack_bf16(values[i], values[i + 1]), pack_bf16(values[i + 2], values[i + 3]),
                          pack_bf16(values[i + 4], values[i + 5]), pack_bf16(values[i + 6], values[i + 7])));
}

// Sum or maximum over the 32 lanes of a warp, in every lane; the order is fixed.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// Sum over a one-dimensional block of whole warps, in every thread; the order is fixed. `scratch`: 32 floats
// of shared memory, free for use again after the block's next barrier.
__device__ inline float block_sum(float value, float* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  sync_block();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

}  // namespace transxssm::cuda
