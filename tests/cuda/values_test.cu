// Conversions, vectors, approximations and launches of kernels/cuda/gpu.h, on a GPU and on the emulated
// device.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "runtime/dtype.h"
#include "tests/cuda/managed.h"

namespace transxssm::cuda {
namespace {

__global__ void convert(const float* in, uint32_t* packed, float* unpacked, float* single, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  packed[i] = pack_bf16(in[i], -in[i]);
  const float2 pair = unpack_bf16(packed[i]);
  unpacked[2 * i] = pair.x;
  unpacked[2 * i + 1] = pair.y;
  single[i] = to_float(to_bf16(in[i])) + 0 * to_float(in[i]);
}

TEST(CudaValues, Bf16RoundsToNearestEven) {
  std::vector<float> values = {0.0f,       1.0f,          -2.5f,  1.00390625f, 1.01171875f,
                               1.0039063f, 3.3895314e38f, 1e-40f, 7e-39f};
  for (int i = 0; i < 200; ++i)
    values.push_back(std::ldexp(1.0f + static_cast<float>(i) / 511.0f, i % 40 - 20));
  const int count = static_cast<int>(values.size());
  Managed<float> in(count), unpacked(2 * count), single(count);
  Managed<uint32_t> packed(count);
  for (int i = 0; i < count; ++i) in[i] = values[static_cast<size_t>(i)];
  launch("convert", convert, {.grid = 4, .block = 64}, nullptr, in.data(), packed.data(), unpacked.data(),
         single.data(), count);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < count; ++i) {
    const BFloat16 low = to_bfloat16(in[i]), high = to_bfloat16(-in[i]);
    EXPECT_EQ(packed[i], uint32_t{low.bits} | uint32_t{high.bits} << 16) << in[i];
    EXPECT_EQ(unpacked[2 * i], transxssm::to_float(low));
    EXPECT_EQ(unpacked[2 * i + 1], transxssm::to_float(high));
    EXPECT_EQ(single[i], transxssm::to_float(low));
  }
}

template <class T, int N>
__global__ void negate(const T* in, T* out) {
  float values[N];
  load_vector<N>(in + N * threadIdx.x, values);
  for (float& value : values) value = -value;
  store_vector<N>(out + N * threadIdx.x, values);
}

template <class T, int N>
void check_vectors() {
  Managed<T> in(32 * N), out(32 * N);
  for (int i = 0; i < 32 * N; ++i) in[i] = static_cast<T>(static_cast<float>(i % 200 + 1));
  launch("negate", negate<T, N>, {.grid = 1, .block = 32}, nullptr, in.data(), out.data());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < 32 * N; ++i)
    EXPECT_EQ(static_cast<float>(out[i]), -static_cast<float>(i % 200 + 1)) << i;
}

TEST(CudaValues, Vectors) {
  check_vectors<float, 4>();
  check_vectors<float, 8>();
  check_vectors<bf16, 8>();
  check_vectors<bf16, 16>();
}

__global__ void approximate(const float* in, float* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    out[5 * i] = fast_exp2(in[i]);
    out[5 * i + 1] = fast_exp(in[i]);
    out[5 * i + 2] = fast_log2(fabsf(in[i]));
    out[5 * i + 3] = fast_log(fabsf(in[i]));
    out[5 * i + 4] = reciprocal_sqrt(fabsf(in[i]));
  }
}

TEST(CudaValues, Approximations) {
  constexpr int kCount = 1001;
  Managed<float> in(kCount), out(5 * kCount);
  for (int i = 0; i < kCount; ++i) in[i] = (static_cast<float>(i) - 500.25f) / 25;  // -20 to 20
  launch("approximate", approximate, {.grid = 1, .block = 64}, nullptr, in.data(), out.data(), kCount);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < kCount; ++i) {
    const double x = in[i], size = std::abs(x);
    EXPECT_NEAR(out[5 * i] / std::exp2(x), 1, 5e-7) << x;
    EXPECT_NEAR(out[5 * i + 1] / std::exp(x), 1, 4e-6) << x;  // x log2(e) is rounded first
    EXPECT_NEAR(out[5 * i + 2], std::log2(size), 1e-6) << x;
    EXPECT_NEAR(out[5 * i + 3], std::log(size), 1e-6) << x;
    EXPECT_NEAR(out[5 * i + 4] * std::sqrt(size), 1, 5e-7) << x;
  }
}

TEST(CudaValues, ApproximationsAtTheEnds) {
  const float infinity = std::numeric_limits<float>::infinity();
  Managed<float> in(4), out(20);
  in[0] = -infinity, in[1] = infinity, in[2] = -1000, in[3] = 1000;
  launch("approximate", approximate, {.grid = 1, .block = 32}, nullptr, in.data(), out.data(), 4);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(out[5 * i], i % 2 == 0 ? 0 : infinity);
    EXPECT_EQ(out[5 * i + 1], i % 2 == 0 ? 0 : infinity);
  }
}

__global__ void count_threads(int32_t* counter) {
  add_to_counter(counter, 3);
}

TEST(CudaValues, Counter) {
  Managed<int32_t> counter(1);
  counter[0] = 5;
  launch("count_threads", count_threads, {.grid = 7, .block = 96}, nullptr, counter.data());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(counter[0], 5 + 3 * 7 * 96);
}

struct Large {
  float values[50000];  // 200 KB: more than a block has without asking
};
__global__ void use_large(float* out, float value) {
  auto& shared = shared_memory<Large>();
  for (unsigned i = threadIdx.x; i < 50000; i += blockDim.x) shared.values[i] = value * static_cast<float>(i);
  sync_block();
  out[threadIdx.x] = shared.values[49999 - threadIdx.x];
}

template <class T, int N>
__global__ void where_am_i(T* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      static_cast<T>(N * (blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z) + 1000 * threadIdx.x +
                     10000 * threadIdx.y + 100000 * threadIdx.z);
}

TEST(CudaLaunch, SharedMemoryAndConvertedArguments) {
  Managed<float> out(64);
  launch("use_large", use_large, {.grid = 1, .block = 64, .shared_bytes = sizeof(Large)}, nullptr, out.data(),
         2);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], 2.0f * static_cast<float>(49999 - i));
}

TEST(CudaLaunch, IndicesOfBlocksAndThreads) {
  constexpr int kBlocks = 3 * 2 * 4, kThreads = 4 * 4 * 2;
  Managed<int> out(kBlocks * kThreads);
  TRANSXSSM_LAUNCH(where_am_i<int, 2>, LaunchShape{.grid = dim3(3, 2, 4), .block = dim3(4, 4, 2)}, nullptr,
                   out.data());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int block = i / kThreads, thread = i % kThreads;
    EXPECT_EQ(out[i], 2 * (block % 3 + block / 3 % 2 * 10 + block / 6 * 100) + thread % 4 * 1000 +
                          thread / 4 % 4 * 10000 + thread / 16 * 100000);
  }
}

TEST(CudaLaunch, AnImpossibleShapeNamesTheKernel) {
  Managed<float> out(1);
  const LaunchShape shape = {.grid = 1, .block = 2048};
  try {
    TRANSXSSM_LAUNCH(where_am_i<float, 7>, shape, nullptr, out.data());
    FAIL() << "launched";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("where_am_i<float, 7>"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("2048"), std::string::npos) << error.what();
  }
  cudaGetLastError();
}

TEST(CudaLaunch, NameOfAKernel) {
  EXPECT_EQ(kernel_name("scale<float, 4>, LaunchShape{.grid = 1, .block = 2}, queue, x"), "scale<float, 4>");
  EXPECT_EQ(kernel_name("copy_rows, shape, queue, f(x, y)"), "copy_rows");
}

}  // namespace
}  // namespace transxssm::cuda
