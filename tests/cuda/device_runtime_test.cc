// The CUDA device runtime on the emulated device: memory, and errors that say what to change.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "runtime/arena.h"
#include "runtime/cuda/register.h"
#include "runtime/error.h"
#include "runtime/stream.h"
#include "tests/support/cuda/emulator.h"

namespace transxssm {
namespace {

using cuda::emulated::Machine;

class RegisterCuda : public testing::Environment {
 public:
  void SetUp() override { register_cuda(); }
};
[[maybe_unused]] const auto* const kRegistered = testing::AddGlobalTestEnvironment(new RegisterCuda);

class On {
 public:
  explicit On(const Machine& machine) { cuda::emulated::use_machine(machine); }
  ~On() { cuda::emulated::use_machine({}); }
};

std::string message_of_stream(int index) {
  try {
    const Stream stream(Device{DeviceKind::cuda, index});
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "";
}

TEST(CudaRuntime, NamesTheDevicesThereAre) {
  EXPECT_EQ(message_of_stream(0), "");
  EXPECT_EQ(message_of_stream(1), "device cuda:1: this machine shows 1 GPU, cuda:0; choose one of them");
  const On machine({.devices = 4});
  EXPECT_EQ(message_of_stream(3), "");
  EXPECT_EQ(message_of_stream(7),
            "device cuda:7: this machine shows 4 GPUs, cuda:0 to cuda:3; choose one of them");
}

TEST(CudaRuntime, SaysThatTheDriverIsMissing) {
  const On machine({.driver = false});
  EXPECT_FALSE(has_device());
  const std::string message = message_of_stream(0);
  EXPECT_NE(message.find("no NVIDIA driver for CUDA"), std::string::npos) << message;
  EXPECT_NE(message.find("or choose the device cpu"), std::string::npos) << message;
}

TEST(CudaRuntime, SaysThatNoGpuIsVisible) {
  const On machine({.devices = 0});
  EXPECT_FALSE(has_device());
  EXPECT_NE(message_of_stream(0).find("CUDA_VISIBLE_DEVICES"), std::string::npos) << message_of_stream(0);
}

TEST(CudaRuntime, RefusesOldGpus) {
  const On machine({.compute_major = 7});
  const std::string message = message_of_stream(0);
  EXPECT_NE(message.find("has compute capability 7.0, but the kernels need 8.0"), std::string::npos)
      << message;
}

TEST(CudaRuntime, SaysHowMuchMemoryIsMissing) {
  const Device device{DeviceKind::cuda, 0};
  try {
    const Arena arena(int64_t{1} << 40, device);
    FAIL() << "1 TiB";
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("1024.00 GiB (1099511627776 bytes) are needed, but "), std::string::npos)
        << message;
    EXPECT_NE(message.find("lower parallel.microbatch_size"), std::string::npos) << message;
  }
  const Arena small(64, device);  // the device goes on
}

TEST(CudaRuntime, KnowsItsOwnMemory) {
  const Device device{DeviceKind::cuda, 0};
  const Arena here(128, device), pinned(128, device, MemoryKind::pinned), host(128);
  const auto at = [](const Arena& arena, int64_t byte) {
    return static_cast<const std::byte*>(arena.carver().take(DType::u8, {1}).raw()) + byte;
  };
  EXPECT_TRUE(device_runtime().owns(at(here, 0)));
  EXPECT_TRUE(device_runtime().owns(at(here, 127)));
  EXPECT_FALSE(device_runtime().owns(at(here, 128)));
  EXPECT_FALSE(device_runtime().owns(at(pinned, 0)));
  EXPECT_FALSE(device_runtime().owns(at(host, 0)));
}

TEST(CudaRuntime, MemoryStartsAsZeros) {
  const Device device{DeviceKind::cuda, 0};
  Stream stream(device);
  const Arena here(64, device), pinned(64, device, MemoryKind::pinned);
  const Tensor from = here.carver().take(DType::u8, {64}), to = pinned.carver().take(DType::u8, {64});
  for (int i = 0; i < 64; ++i) ASSERT_EQ(to.data<uint8_t>()[i], 0);
  std::vector<uint8_t> read(64, 1);
  transfer(stream, from, Tensor(read.data(), DType::u8, {64}));
  stream.synchronize();
  EXPECT_EQ(read, std::vector<uint8_t>(64, 0));
}

// What one queue was given before, the other finds.
TEST(CudaRuntime, QueuesWaitForEachOther) {
  const Device device{DeviceKind::cuda, 0};
  Stream first(device), second(device);
  Arena memory(64, device), pinned(64, device, MemoryKind::pinned);
  const Tensor x = memory.carver().take(DType::i32, {1});
  Carver carver = pinned.carver();
  const Tensor value = carver.take(DType::i32, {1});
  int32_t read = 0;
  value.data<int32_t>()[0] = 5;
  transfer(first, value, x);
  second.queue()->wait_for(*first.queue());
  transfer(second, x, Tensor(&read, DType::i32, {1}));
  second.synchronize();
  EXPECT_EQ(read, 5);
}

// An int32 on the device that recorded work copies from and to.
struct Cell {
  explicit Cell(Device device, MemoryKind kind = MemoryKind::device)
      : arena(64, device, kind), value(arena.carver().take(DType::i32, {1})) {}
  Arena arena;
  Tensor value;
};

TEST(CudaRuntime, RecordedWorkRunsWhereItIsLaunched) {
  const Device device{DeviceKind::cuda, 0};
  Stream stream(device);
  const Cell from(device, MemoryKind::pinned), middle(device), to(device, MemoryKind::pinned);
  int32_t &in = *from.value.data<int32_t>(), &out = *to.value.data<int32_t>();
  in = 5;
  const auto graph = stream.queue()->capture([&] {
    transfer(stream, from.value, middle.value);
    transfer(stream, middle.value, to.value);
  });
  stream.synchronize();
  EXPECT_EQ(out, 0);  // only recorded
  for (const int32_t value : {6, 7}) {
    in = value;
    stream.queue()->launch(*graph);
    zero(stream, middle.value);  // in the order of the queue
    stream.synchronize();
    EXPECT_EQ(out, value);
  }
}

// What a graph cannot have is refused, whatever the work does about it, and the stream goes on.
TEST(CudaRuntime, RecordedWorkMustNotWait) {
  const Device device{DeviceKind::cuda, 0};
  Stream stream(device), other(device);
  const Cell pinned(device, MemoryKind::pinned), here(device);
  int32_t pageable = 3;
  const Tensor host(&pageable, DType::i32, {1});
  const std::vector<std::function<void()>> refused = {[&] { stream.synchronize(); },
                                                      [&] { Arena arena(64, device); },
                                                      [&] { transfer(stream, here.value, host); },
                                                      [&] { transfer(stream, host, here.value); },
                                                      [&] { stream.queue()->mark(); },
                                                      [&] { stream.queue()->wait_for(*other.queue()); },
                                                      [&] { throw DeviceError("another reason"); }};
  for (size_t i = 0; i < refused.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_THROW(stream.queue()->capture(refused[i]), DeviceError);
    *pinned.value.data<int32_t>() = 11;
    transfer(stream, pinned.value, here.value);
    transfer(stream, here.value, host);
    stream.synchronize();
    EXPECT_EQ(pageable, 11);
    pageable = 3;
  }
  EXPECT_THROW(stream.queue()->capture([&] {
    try {
      stream.synchronize();
    } catch (const DeviceError&) {
    }
  }),
               DeviceError);
}

}  // namespace
}  // namespace transxssm
