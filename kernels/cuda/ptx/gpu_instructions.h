// The instructions that C++ lacks, by nvcc's intrinsics and inline PTX (PTX ISA 8.0; sm_80 and newer). What
// each means is said in kernels/cuda/gpu.h; tests/support/cuda has the same names for the emulated device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>
#include <tuple>
#include <utility>

namespace transxssm::cuda {

template <class T>
__device__ inline T& shared_memory() {
  extern __shared__ __align__(128) unsigned char transxssm_shared_memory[];
  return *reinterpret_cast<T*>(transxssm_shared_memory);
}

__device__ inline void sync_block() {
  __syncthreads();
}
__device__ inline void sync_warp() {
  __syncwarp();
}
__device__ inline void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <class T>
__device__ inline T shuffle_up(T value, int lanes) {
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(lanes));
}
template <class T>
__device__ inline T shuffle_down(T value, int lanes) {
  return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(lanes));
}
__device__ inline uint32_t ballot(bool predicate) {
  return __ballot_sync(kAllLanes, predicate);
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
__device__ inline void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ inline void copy_async_or_zero(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ inline void load_matrix_x2(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ inline void load_matrix_x2_transposed(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float fast_log2(float x) {
  return __log2f(x);
}
__device__ inline float reciprocal_sqrt(float x) {
  return rsqrtf(x);
}
__device__ inline float bits_to_float(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ inline uint32_t float_to_bits(float x) {
  return __float_as_uint(x);
}
__device__ inline uint4 load_16_bytes(const void* p) {
  return *static_cast<const uint4*>(p);
}
__device__ inline void store_16_bytes(void* p, uint4 value) {
  *static_cast<uint4*>(p) = value;
}
__device__ inline void add_to_counter(int32_t* global, int32_t value) {
  atomicAdd(global, value);
}

// Above 48 KB a kernel must be allowed its shared memory first.
template <class... Parameters>
cudaError_t launch_kernel(std::string_view, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                          size_t shared_bytes, cudaStream_t queue,
                          const std::tuple<Parameters...>& parameters) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  return std::apply(
      [&](const Parameters&... parameter) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&parameter))...};
        return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, queue);
      },
      parameters);
}

}  // namespace transxssm::cuda
