// The emulator finds what a kernel forgets: each kernel here lacks one thing, or does one thing wrong, and
// the kernel beside it that has it passes.
#include "tests/support/cuda/emulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "tests/cuda/managed.h"
#include "tests/support/cuda/sanitizer.h"

namespace transxssm::cuda {
namespace {

using emulated::Copies;
using emulated::Queues;
using emulated::Schedule;
using emulated::Settings;
using testing::AllOf;
using testing::HasSubstr;

const std::vector<Settings> kSettings = {
    {Schedule::fifo, Copies::early, Queues::immediate},
    {Schedule::fifo, Copies::late, Queues::deferred},
    {Schedule::greedy, Copies::late, Queues::immediate},
    {Schedule::greedy_reversed, Copies::early, Queues::immediate},
};

// Every test here chooses its settings and leaves those of the program.
class EmulatorFinds : public testing::Test {
 protected:
  void SetUp() override {
    if (emulated::wants_fresh_memory())
      GTEST_SKIP() << "the thread sanitizer ends at the race that is wanted here";
  }
  void TearDown() override { emulated::use_settings(saved_); }

 private:
  const Settings saved_ = emulated::settings();
};

struct Shared {
  uint4 copies[128];
  float values[128];
  float other[128];
};
constexpr LaunchShape kShape = {.grid = 2, .block = 128, .shared_bytes = sizeof(Shared)};

// With the sanitizers: what they find in a process of its own.
class SanitizersFind : public testing::Test {
 protected:
  static bool under(const char* name) { return std::string(emulated::sanitizer_name()) == name; }
  template <class Kernel>
  [[noreturn]] static void run_and_exit(Kernel kernel) {
    Managed<float> out(256);
    for (int i = 0; i < 256; ++i) out[i] = 0;
    launch("kernel", kernel, kShape, nullptr, out.data());
    std::exit(cudaDeviceSynchronize() == cudaSuccess ? 0 : 1);
  }
};

// Settings under which kernel(out) leaves in out[256] something else than `expected`, or fails.
template <class Kernel, class Expected>
std::string caught_by(Kernel kernel, const Expected& expected) {
  std::string caught;
  for (const Settings& settings : kSettings) {
    emulated::use_settings(settings);
    Managed<float> out(256);
    launch("kernel", kernel, kShape, nullptr, out.data());
    bool right = cudaDeviceSynchronize() == cudaSuccess;
    for (int i = 0; i < 256; ++i) right = right && out[i] == expected(i % 128);
    if (!right) caught += (caught.empty() ? "" : " ") + to_string(settings);
  }
  return caught;
}

// What is said of a kernel that fails.
template <class Kernel>
std::string error_of(Kernel kernel, const LaunchShape& shape = kShape) {
  emulated::use_settings({});
  Managed<float> out(256);
  try {
    launch("wrong_kernel", kernel, shape, nullptr, out.data());
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "";
}

float mirrored(int thread) {
  return static_cast<float>(127 - thread);
}

// Which barrier of a round of write, barrier, read, barrier is missing. The shuffles in between make the
// lanes of a warp keep pace with one another.
enum class Missing { none, after_write, after_read };

template <Missing missing>
__global__ void exchange(float* out) {
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    shared.values[thread] = static_cast<float>(thread + 1000 * round);
    if constexpr (missing != Missing::after_write) sync_block();
    sum += shuffle_xor(shared.values[127 - thread], 0) - static_cast<float>(1000 * round);
    if constexpr (missing != Missing::after_read) sync_block();
  }
  out[blockIdx.x * 128 + threadIdx.x] = sum / 3;
}

TEST_F(EmulatorFinds, AMissingBarrierOfTheBlock) {
  EXPECT_EQ(caught_by(exchange<Missing::none>, mirrored), "");
  EXPECT_NE(caught_by(exchange<Missing::after_write>, mirrored), "");
  EXPECT_THAT(caught_by(exchange<Missing::after_read>, mirrored), HasSubstr("greedy"));
}

// The same from one warp to the others, which an order of warps may hide.
template <bool barrier, int writer>
__global__ void broadcast(float* out) {
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread / kWarp == writer) shared.values[thread % kWarp] = 7;
  if constexpr (barrier) sync_block();
  out[blockIdx.x * 128 + threadIdx.x] = shared.values[(thread + 5) % kWarp];
}

TEST_F(EmulatorFinds, AMissingBarrierAfterOneWarp) {
  const auto seven = [](int) { return 7.0f; };
  EXPECT_EQ((caught_by(broadcast<true, 0>, seven)), "");
  EXPECT_EQ((caught_by(broadcast<true, 3>, seven)), "");
  EXPECT_NE((caught_by(broadcast<false, 0>, seven)), "");
  EXPECT_NE((caught_by(broadcast<false, 3>, seven)), "");
}

template <Missing missing>
__global__ void exchange_in_warp(float* out) {
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    shared.values[thread] = static_cast<float>(thread + 1000 * round);
    if constexpr (missing != Missing::after_write) sync_warp();
    sum += shared.values[thread ^ 31] - static_cast<float>(1000 * round);
    if constexpr (missing != Missing::after_read) sync_warp();
  }
  out[blockIdx.x * 128 + threadIdx.x] = sum / 3;
}

TEST_F(EmulatorFinds, AMissingBarrierOfAWarp) {
  const auto expected = [](int thread) { return static_cast<float>(thread ^ 31); };
  EXPECT_EQ(caught_by(exchange_in_warp<Missing::none>, expected), "");
  EXPECT_NE(caught_by(exchange_in_warp<Missing::after_write>, expected), "");
  EXPECT_NE(caught_by(exchange_in_warp<Missing::after_read>, expected), "");
}

template <bool named>
__global__ void exchange_in_halves(float* out) {
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x), half = thread / 64;
  shared.values[thread] = static_cast<float>(thread);
  if constexpr (named) sync_named(1 + half, 64);
  out[blockIdx.x * 128 + threadIdx.x] = shared.values[half * 64 + 63 - thread % 64];
}

TEST_F(EmulatorFinds, AMissingNamedBarrier) {
  const auto expected = [](int thread) { return static_cast<float>(thread / 64 * 64 + 63 - thread % 64); };
  EXPECT_EQ(caught_by(exchange_in_halves<true>, expected), "");
  EXPECT_NE(caught_by(exchange_in_halves<false>, expected), "");
}

template <bool wait, bool barrier>
__global__ void copy(float* out) {
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  float* own = out + blockIdx.x * 128;
  if (thread < 32) copy_async(&shared.copies[thread], own + 4 * thread);
  commit_copies();
  if constexpr (wait) wait_copies<0>();
  if constexpr (barrier) sync_block();
  const float value = reinterpret_cast<const float*>(shared.copies)[127 - thread];
  sync_block();
  own[thread] = value;
}

TEST_F(EmulatorFinds, AMissingWaitOrBarrierOfCopies) {
  const auto run = [](auto kernel) {
    std::string caught;
    for (const Settings& settings : kSettings) {
      emulated::use_settings(settings);
      Managed<float> out(256);
      for (int i = 0; i < 256; ++i) out[i] = static_cast<float>(i);
      launch("kernel", kernel, kShape, nullptr, out.data());
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      bool right = true;
      for (int i = 0; i < 256; ++i)
        right = right && out[i] == static_cast<float>(i / 128 * 128 + 127 - i % 128);
      if (!right) caught += to_string(settings) + " ";
    }
    return caught;
  };
  EXPECT_EQ(run(copy<true, true>), "");
  EXPECT_EQ(run(copy<false, true>), "fifo_late_deferred greedy_late ");
  EXPECT_NE(run(copy<true, false>), "");
}

__global__ void read_unwritten(float* out) {
  out[blockIdx.x * 128 + threadIdx.x] = shared_memory<Shared>().values[threadIdx.x];
}

TEST_F(EmulatorFinds, SharedMemoryThatWasNotWritten) {
  for (const Settings& settings : kSettings) {
    emulated::use_settings(settings);
    Managed<float> out(256);
    for (int i = 0; i < 256; ++i) out[i] = 0;
    launch("kernel", read_unwritten, kShape, nullptr, out.data());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (int i = 0; i < 256; ++i) EXPECT_TRUE(std::isnan(out[i]));
  }
}

__global__ void end_before_barrier(float*) {
  if (threadIdx.x >= 96) return;
  sync_block();
}
__global__ void different_barriers(float*) {
  if (threadIdx.x < 32) {
    sync_block();
  } else {
    sync_block();
  }
}
__global__ void different_operations(float* out) {
  if (threadIdx.x % 2 == 0)
    out[threadIdx.x] = shuffle(1.0f, 0);
  else
    sync_warp();
}
__global__ void too_few_come(float*) {
  if (threadIdx.x < 64) sync_named(3, 96);
}
__global__ void disagree_on_number(float*) {
  sync_named(3, threadIdx.x < 64 ? 128 : 64);
}

TEST_F(EmulatorFinds, DivergentBarriers) {
  EXPECT_THAT(error_of(end_before_barrier),
              AllOf(HasSubstr("launch of wrong_kernel"), HasSubstr("block (0, 0, 0)"),
                    HasSubstr("can never go on"), HasSubstr("96 threads wait at sync_block of"),
                    HasSubstr("emulator_test.cu:"), HasSubstr("32 threads have ended")));
  EXPECT_THAT(error_of(different_barriers), HasSubstr("sync_block meets threads that wait at sync_block of"));
  EXPECT_THAT(error_of(different_operations), HasSubstr("sync_warp meets threads that wait at shuffle of"));
  EXPECT_THAT(error_of(too_few_come), HasSubstr("64 threads have ended, 64 threads wait at sync_named of"));
  EXPECT_THAT(error_of(disagree_on_number), HasSubstr("where others wait for 128"));
}

__global__ void misaligned_copy(float* out) {
  copy_async(shared_memory<Shared>().copies, out + 1);
}
__global__ void misaligned_load(float* out) {
  float values[4];
  load_vector<4>(out + 2, values);
  out[0] = values[0];
}
__global__ void copy_to_global(float* out) {
  copy_async(out, out + 4);
}
__global__ void nothing(float*) {}

TEST_F(EmulatorFinds, WrongAddressesAndShapes) {
  EXPECT_THAT(error_of(misaligned_copy), HasSubstr("4 past a multiple of 16"));
  EXPECT_THAT(error_of(misaligned_load), HasSubstr("8 past a multiple of 16"));
  EXPECT_THAT(error_of(copy_to_global), HasSubstr("must be in shared memory"));
  EXPECT_THAT(error_of(read_unwritten, {.grid = 1, .block = 32, .shared_bytes = 16}),
              HasSubstr("the launch gave it 16"));
  EXPECT_THAT(error_of(nothing, {.grid = 1, .block = 33}), HasSubstr("invalid configuration"));
  EXPECT_THAT(error_of(nothing, {.grid = 1, .block = 32, .shared_bytes = 228 * 1024}),
              HasSubstr("invalid configuration"));
  EXPECT_EQ(error_of(nothing), "");
}

__global__ void write_value(float* out) {
  out[threadIdx.x] = 3;
}

TEST_F(EmulatorFinds, AHostThatDoesNotWait) {
  emulated::use_settings({.queues = Queues::deferred});
  Managed<float> out(32);
  out[0] = 1;
  launch("write_value", write_value, {.grid = 1, .block = 32}, nullptr, out.data());
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(out[0], 3);
}

template <bool over_shared>
__global__ void write_past_end(float* out) {
  float* begin = over_shared ? shared_memory<Shared>().values : out;
  const int past = over_shared ? 256 : 128;
  begin[past + static_cast<int>(threadIdx.x)] = 1;
}

TEST_F(SanitizersFind, WritesPastTheEndOfMemory) {
  if (!under("address")) GTEST_SKIP() << "needs the address sanitizer";
  EXPECT_DEATH(run_and_exit(write_past_end<true>), "heap-buffer-overflow");
  EXPECT_DEATH(
      {
        Managed<float> out(128);
        launch("kernel", write_past_end<false>, kShape, nullptr, out.data());
      },
      "heap-buffer-overflow");
}

template <bool race>
__global__ void write_from_two_blocks(float* out) {
  out[(race ? 0 : 128 * blockIdx.x) + threadIdx.x] = 1;
}

TEST_F(SanitizersFind, Races) {
  if (!under("thread")) GTEST_SKIP() << "needs the thread sanitizer";
  const auto raced = testing::ExitedWithCode(66);
  EXPECT_EXIT(run_and_exit(exchange<Missing::none>), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(run_and_exit(exchange<Missing::after_write>), raced, "data race");
  EXPECT_EXIT(run_and_exit(exchange<Missing::after_read>), raced, "data race");
  EXPECT_EXIT(run_and_exit(exchange_in_warp<Missing::none>), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(run_and_exit(exchange_in_warp<Missing::after_write>), raced, "data race");
  EXPECT_EXIT(run_and_exit(exchange_in_warp<Missing::after_read>), raced, "data race");
  EXPECT_EXIT(run_and_exit(exchange_in_halves<false>), raced, "data race");
  EXPECT_EXIT(run_and_exit(copy<true, true>), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(run_and_exit(copy<true, false>), raced, "data race");
  EXPECT_EXIT(run_and_exit(write_from_two_blocks<false>), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(run_and_exit(write_from_two_blocks<true>), raced, "data race");
}

// One stream waits for an event of another; without the event it reads too early.
TEST_F(EmulatorFinds, AStreamThatDoesNotWait) {
  emulated::use_settings({.queues = Queues::deferred});
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t written = nullptr;
  ASSERT_EQ(cudaStreamCreate(&first), cudaSuccess);
  ASSERT_EQ(cudaStreamCreate(&second), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&written), cudaSuccess);
  for (bool wait : {false, true}) {
    Managed<float> out(32), copied(1);
    out[0] = 1;
    launch("write_value", write_value, {.grid = 1, .block = 32}, first, out.data());
    ASSERT_EQ(cudaEventRecord(written, first), cudaSuccess);
    if (wait) {
      ASSERT_EQ(cudaStreamWaitEvent(second, written, 0), cudaSuccess);
    }
    ASSERT_EQ(cudaMemcpyAsync(copied.data(), out.data(), 4, cudaMemcpyDefault, second), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
    EXPECT_EQ(copied[0], wait ? 3 : 1);
    ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);
  }
  cudaEventDestroy(written);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}

TEST_F(EmulatorFinds, AFailureWhenTheHostWaits) {
  emulated::use_settings({.queues = Queues::deferred});
  Managed<float> out(256);
  launch("end_before_barrier", end_before_barrier, kShape, nullptr, out.data());
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorLaunchFailure);
  EXPECT_THAT(cudaGetErrorString(cudaErrorLaunchFailure), HasSubstr("end_before_barrier"));
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_THAT(emulated::launched_kernels(), testing::Contains("end_before_barrier"));
}

}  // namespace
}  // namespace transxssm::cuda
