// What each name of kernels/cuda/gpu.h does, the same source on a GPU and on the emulated device. The layouts
// of matrix fragments are written here once more, from the PTX manual.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "tests/cuda/managed.h"

namespace transxssm::cuda {
namespace {

template <class... Parameters, class... Args>
void run_kernel(void (*kernel)(Parameters...), LaunchShape shape, Args... args) {
  launch("kernel", kernel, shape, nullptr, args...);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
}

bf16 exact(int value) {
  return __float2bfloat16(static_cast<float>(value));
}

// Matrices of integers that are exact in bf16 and whose sums are exact in float, every element another.
struct Operands {
  Managed<bf16> a{16 * 16}, b{16 * 8};  // [m][k], [k][n]
  Managed<float> d{16 * 8};
  std::vector<double> expected = std::vector<double>(16 * 8);
  Operands() {
    for (int i = 0; i < 256; ++i) a[i] = exact(i - 100);
    for (int i = 0; i < 128; ++i) b[i] = exact(3 * i % 128 - 50), d[i] = static_cast<float>(10 * i + 7);
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 8; ++n) {
        double sum = d[m * 8 + n];
        for (int k = 0; k < 16; ++k) sum += (m * 16 + k - 100) * (3 * (k * 8 + n) % 128 - 50);
        expected[static_cast<size_t>(m * 8 + n)] = sum;
      }
  }
};

__device__ uint32_t pair(bf16 low, bf16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) | static_cast<uint32_t>(__bfloat16_as_ushort(high))
                                                                << 16;
}

__device__ void load_sums(float (&d)[4], const float* matrix, int lane) {
  for (int i = 0; i < 4; ++i) d[i] = matrix[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
}
__device__ void store_sums(const float (&d)[4], float* matrix, int lane) {
  for (int i = 0; i < 4; ++i) matrix[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

__global__ void multiply_fragments(const bf16* a, const bf16* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, k = lane % 4 * 2;
  const uint32_t a_fragment[4] = {pair(a[group * 16 + k], a[group * 16 + k + 1]),
                                  pair(a[(group + 8) * 16 + k], a[(group + 8) * 16 + k + 1]),
                                  pair(a[group * 16 + k + 8], a[group * 16 + k + 9]),
                                  pair(a[(group + 8) * 16 + k + 8], a[(group + 8) * 16 + k + 9])};
  const uint32_t b_fragment[2] = {pair(b[k * 8 + group], b[(k + 1) * 8 + group]),
                                  pair(b[(k + 8) * 8 + group], b[(k + 9) * 8 + group])};
  float sums[4];
  load_sums(sums, d, lane);
  mma_16x8x16(sums, a_fragment, b_fragment);
  store_sums(sums, d, lane);
}

TEST(CudaInstructions, MatrixProductOfFragments) {
  Operands operands;
  run_kernel(multiply_fragments, {.grid = 1, .block = 32}, operands.a.data(), operands.b.data(),
             operands.d.data());
  for (int i = 0; i < 128; ++i) EXPECT_EQ(operands.d[i], operands.expected[static_cast<size_t>(i)]) << i;
}

// The ways a kernel loads its operands: a by rows; b from rows of k (transposed) and from rows of n.
struct Tiles {
  bf16 a[16][16];
  bf16 b[16][8];
  bf16 b_rows[8][16];
};

__global__ void multiply_tiles(const bf16* a, const bf16* b, float* d, bool b_by_rows) {
  auto& tiles = shared_memory<Tiles>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tiles.a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) tiles.b[i / 8][i % 8] = tiles.b_rows[i % 8][i / 8] = b[i];
  sync_warp();
  uint32_t a_fragment[4], b_fragment[2];
  load_matrix_x4(a_fragment, &tiles.a[lane % 16][lane / 16 * 8]);
  if (b_by_rows)
    load_matrix_x2(b_fragment, &tiles.b_rows[lane % 8][lane / 8 % 2 * 8]);
  else
    load_matrix_x2_transposed(b_fragment, &tiles.b[lane % 16][0]);
  float sums[4];
  load_sums(sums, d, lane);
  mma_16x8x16(sums, a_fragment, b_fragment);
  store_sums(sums, d, lane);
}

TEST(CudaInstructions, MatrixProductOfTiles) {
  for (bool b_by_rows : {false, true}) {
    Operands operands;
    run_kernel(multiply_tiles, {.grid = 1, .block = 32, .shared_bytes = sizeof(Tiles)}, operands.a.data(),
               operands.b.data(), operands.d.data(), b_by_rows);
    for (int i = 0; i < 128; ++i) EXPECT_EQ(operands.d[i], operands.expected[static_cast<size_t>(i)]) << i;
  }
}

struct Rows {
  uint16_t rows[32][8];
};

__global__ void load_each(const uint16_t* from, uint32_t* x4, uint32_t* x4_transposed, uint32_t* x2,
                          uint32_t* x2_transposed) {
  auto& shared = shared_memory<Rows>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) shared.rows[lane][i] = from[lane * 8 + i];
  sync_warp();
  uint32_t four[4], two[2];
  load_matrix_x4(four, shared.rows[lane]);
  for (int m = 0; m < 4; ++m) x4[lane * 4 + m] = four[m];
  load_matrix_x4_transposed(four, shared.rows[lane]);
  for (int m = 0; m < 4; ++m) x4_transposed[lane * 4 + m] = four[m];
  load_matrix_x2(two, shared.rows[lane]);
  for (int m = 0; m < 2; ++m) x2[lane * 2 + m] = two[m];
  load_matrix_x2_transposed(two, shared.rows[lane]);
  for (int m = 0; m < 2; ++m) x2_transposed[lane * 2 + m] = two[m];
}

TEST(CudaInstructions, LoadMatrix) {
  Managed<uint16_t> from(256);
  for (int i = 0; i < 256; ++i) from[i] = static_cast<uint16_t>(1000 + i);
  Managed<uint32_t> x4(128), x4_transposed(128), x2(64), x2_transposed(64);
  run_kernel(load_each, {.grid = 1, .block = 32, .shared_bytes = sizeof(Rows)}, from.data(), x4.data(),
             x4_transposed.data(), x2.data(), x2_transposed.data());
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int row, int column) { return uint32_t{from[(8 * m + row) * 8 + column]}; };
      const int major = lane / 4, minor = lane % 4 * 2;
      const uint32_t plain = element(major, minor) | element(major, minor + 1) << 16;
      const uint32_t transposed = element(minor, major) | element(minor + 1, major) << 16;
      EXPECT_EQ(x4[lane * 4 + m], plain);
      EXPECT_EQ(x4_transposed[lane * 4 + m], transposed);
      if (m >= 2) continue;
      EXPECT_EQ(x2[lane * 2 + m], plain);
      EXPECT_EQ(x2_transposed[lane * 2 + m], transposed);
    }
}

struct CopyBuffer {
  uint4 slots[64][3];
};

// Each thread copies three groups and looks at what it must see after each wait.
__global__ void copy_groups(const uint4* from, uint4* to) {
  auto& shared = shared_memory<CopyBuffer>();
  const int thread = static_cast<int>(threadIdx.x);
  uint4* own = shared.slots[thread];
  copy_async(&own[0], from + 3 * thread);
  commit_copies();
  copy_async(&own[1], from + 3 * thread + 1);
  commit_copies();
  copy_async_or_zero(&own[2], from + 3 * thread + 2, thread % 2 == 0);
  commit_copies();
  wait_copies<2>();
  to[3 * thread] = own[0];
  wait_copies<1>();
  to[3 * thread + 1] = own[1];
  wait_copies<0>();
  sync_block();
  to[3 * thread + 2] = shared.slots[(thread + 2) % 64][2];
}

TEST(CudaInstructions, AsynchronousCopies) {
  Managed<uint4> from(192), to(192);
  for (unsigned i = 0; i < 192; ++i) from[i] = make_uint4(4 * i + 1, 4 * i + 2, 4 * i + 3, 4 * i + 4);
  run_kernel(copy_groups, {.grid = 1, .block = 64, .shared_bytes = sizeof(CopyBuffer)}, from.data(),
             to.data());
  const auto same = [](uint4 a, uint4 b) { return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w; };
  for (int thread = 0; thread < 64; ++thread) {
    EXPECT_TRUE(same(to[3 * thread], from[3 * thread]) && same(to[3 * thread + 1], from[3 * thread + 1]));
    const uint4 expected = thread % 2 == 0 ? from[3 * ((thread + 2) % 64) + 2] : make_uint4(0, 0, 0, 0);
    EXPECT_TRUE(same(to[3 * thread + 2], expected)) << thread;
  }
}

template <class T>
__global__ void shuffle_each(T* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(100 + lane);
  out[lane] = shuffle(value, (lane * 7 + 3) % 32);
  out[32 + lane] = shuffle_xor(value, 5);
  out[64 + lane] = shuffle_up(value, 3);
  out[96 + lane] = shuffle_down(value, 9);
}

template <class T>
void check_shuffles() {
  Managed<T> out(128);
  run_kernel(shuffle_each<T>, {.grid = 1, .block = 32}, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(out[lane], static_cast<T>(100 + (lane * 7 + 3) % 32));
    EXPECT_EQ(out[32 + lane], static_cast<T>(100 + (lane ^ 5)));
    EXPECT_EQ(out[64 + lane], static_cast<T>(100 + (lane < 3 ? lane : lane - 3)));
    EXPECT_EQ(out[96 + lane], static_cast<T>(100 + (lane + 9 > 31 ? lane : lane + 9)));
  }
}

TEST(CudaInstructions, Shuffles) {
  check_shuffles<float>();
  check_shuffles<int>();
  check_shuffles<uint32_t>();
  check_shuffles<double>();
  check_shuffles<int64_t>();
}

__global__ void vote(uint32_t* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool odd_warp = threadIdx.x >= 32;
  out[threadIdx.x] = ballot(odd_warp ? lane % 3 == 0 : lane >= 30);
}

TEST(CudaInstructions, Ballot) {
  Managed<uint32_t> out(64);
  run_kernel(vote, {.grid = 1, .block = 64}, out.data());
  uint32_t thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], i < 32 ? 0xc0000000u : thirds);
}

struct Exchange {
  int values[256];
};

// Rounds of write and read across the block, across a warp, and across each half of the block by name.
__global__ void exchange_values(int* out) {
  auto& shared = shared_memory<Exchange>();
  const int thread = static_cast<int>(threadIdx.x), half = thread / 128;
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    shared.values[thread] = thread * 10 + round;
    sync_block();
    sum += shared.values[255 - thread];
    sync_block();
    shared.values[thread] = thread * 20 + round;
    sync_warp();
    sum += shared.values[thread ^ 31];
    sync_warp();
    shared.values[thread] = thread * 30 + round;
    sync_named(1 + half, 128);
    sum += shared.values[half * 128 + (thread + 64) % 128];
    sync_named(1 + half, 128);
  }
  out[thread] = sum;
}

TEST(CudaInstructions, Barriers) {
  Managed<int> out(256);
  run_kernel(exchange_values, {.grid = 1, .block = 256, .shared_bytes = sizeof(Exchange)}, out.data());
  for (int thread = 0; thread < 256; ++thread) {
    const int other = thread / 128 * 128 + (thread + 64) % 128;
    EXPECT_EQ(out[thread], 3 * ((255 - thread) * 10 + (thread ^ 31) * 20 + other * 30) + 9) << thread;
  }
}

struct Sums {
  float scratch[32];
};

__global__ void reduce(const float* in, float* sums, float* warp_sums, float* warp_maxima) {
  auto& shared = shared_memory<Sums>();
  const int thread = static_cast<int>(threadIdx.x);
  const float value = in[thread];
  warp_sums[thread] = warp_sum(value);
  warp_maxima[thread] = warp_max(value);
  const float once = block_sum(value, shared.scratch);
  sync_block();
  sums[thread] = once + block_sum(2 * value, shared.scratch);
}

TEST(CudaInstructions, Sums) {
  for (int threads : {32, 96, 1024}) {
    Managed<float> in(threads), sums(threads), warp_sums(threads), warp_maxima(threads);
    std::vector<float> expected(static_cast<size_t>(threads / 32), 0.0f);
    float total = 0;
    for (int i = 0; i < threads; ++i) {
      in[i] = static_cast<float>(i * 37 % 101 - 50);
      expected[static_cast<size_t>(i / 32)] += in[i];
      total += in[i];
    }
    run_kernel(reduce,
               {.grid = 1, .block = dim3(static_cast<unsigned>(threads)), .shared_bytes = sizeof(Sums)},
               in.data(), sums.data(), warp_sums.data(), warp_maxima.data());
    for (int i = 0; i < threads; ++i) {
      EXPECT_EQ(sums[i], 3 * total) << i;
      EXPECT_EQ(warp_sums[i], expected[static_cast<size_t>(i / 32)]) << i;
      float largest = -1000;
      for (int j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) largest = std::fmax(largest, in[j]);
      EXPECT_EQ(warp_maxima[i], largest);
    }
  }
}

}  // namespace
}  // namespace transxssm::cuda
