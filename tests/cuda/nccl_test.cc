// Device tensors by NCCL, ranks as threads that each have an emulated GPU, and its stand-in for NCCL.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "parallel/cuda/register.h"
#include "parallel/device_transport.h"
#include "parallel/gradient_reducer.h"
#include "parallel/local.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/support/cuda/emulator.h"
#include "tests/support/cuda/nccl_on_host.h"

namespace transxssm {
namespace {

// For a test: eight GPUs, work that runs when it is queued, NCCL.
class Gpus {
 public:
  Gpus() {
    auto immediate = settings_;
    immediate.queues = cuda::emulated::Queues::immediate;
    cuda::emulated::use_settings(immediate);
    cuda::emulated::use_machine({.devices = 8});
    register_nccl();
  }
  ~Gpus() {
    use_device_transport(nullptr);
    cuda::emulated::use_machine({});
    cuda::emulated::use_settings(settings_);
  }

 private:
  const cuda::emulated::Settings settings_ = cuda::emulated::settings();
};

void run_by_nccl(int ranks, const std::function<void(Communicator&, Stream&)>& fn) {
  const Gpus gpus;
  run_as_ranks(ranks, [&](Communicator& world) {
    Stream stream(Device{DeviceKind::cuda, world.rank()});
    EXPECT_EQ(attach_device(world, stream).substr(0, 5), "NCCL ");
    fn(world, stream);
    world.use_device(nullptr);
  });
}

// Numbers of the cases that NCCL promises.
std::vector<int> nccl_cases() {
  std::vector<int> cases;
  for (size_t i = 0; i < communicator_cases().size(); ++i)
    if (!communicator_cases()[i].beyond_nccl) cases.push_back(static_cast<int>(i));
  return cases;
}

class NcclConformance : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(NcclConformance, Case) {
  const auto [ranks, index] = GetParam();
  const CommunicatorCase& one = communicator_cases()[static_cast<size_t>(index)];
  run_by_nccl(ranks, [&](Communicator& world, Stream& stream) {
    const PlaceOnDevice place(stream, false);
    one.run(world);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Nccl, NcclConformance, testing::Combine(testing::Values(1, 2, 3), testing::ValuesIn(nccl_cases())),
    [](const auto& instance) {
      return std::string(communicator_cases()[static_cast<size_t>(std::get<1>(instance.param))].name) + "_" +
             std::to_string(std::get<0>(instance.param));
    });

// A whole bucket's sum is under way while the others' gradients are still formed.
TEST(Nccl, BucketsAreSummedBesideTheBackwardPass) {
  run_by_nccl(2, [](Communicator& world, Stream& stream) {
    Arena memory(64, stream.device());
    const Tensor gradient = memory.carver().take(DType::f32, {4});
    std::vector<float> values{0, 0, 3, 4};
    const Tensor host(values.data(), DType::f32, {4});
    GradientReducer reducer(world, gradient, {{2, 2}, {0, 2}});
    for (int step = 0; step < 2; ++step) {
      values = {0, 0, 3, 4};
      transfer(stream, host, gradient);
      reducer.complete(2);
      transfer(stream, gradient, host);
      stream.synchronize();
      EXPECT_EQ(values, (std::vector<float>{0, 0, 6, 8}));
      values = {1, 2, 6, 8};
      transfer(stream, host.slice(0, 0, 2), gradient.slice(0, 0, 2));
      reducer.finish();
      transfer(stream, gradient, host);
      stream.synchronize();
      EXPECT_EQ(values, (std::vector<float>{2, 4, 6, 8}));
    }
  });
}

// A rank that is lost: the others' wait ends, and the next call says what was under way.
TEST(Nccl, FailureEndsWaitsAndIsNamed) {
  run_by_nccl(2, [](Communicator& world, Stream& stream) {
    world.set_name("dp");
    Arena memory(64, stream.device());
    const Tensor x = memory.carver().take(DType::f32, {4});
    world.all_reduce(x);
    world.barrier();
    std::string message;
    if (world.rank() == 0) {
      try {
        world.all_reduce(x);  // the other never comes
        world.barrier();
      } catch (const CommunicationError& error) {
        message = error.what();
      }
      EXPECT_NE(message.find("Rank 0 in all_reduce of 'dp'"), std::string::npos) << message;
      EXPECT_NE(message.find("remote process exited"), std::string::npos) << message;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      cuda::emulated::break_nccl();
      const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (message.empty() && std::chrono::steady_clock::now() < limit) {  // the watchdog sees it
        try {
          world.all_reduce(x);
        } catch (const CommunicationError& error) {
          message = error.what();
        }
      }
      EXPECT_NE(message.find("Rank 1 in all_reduce of 'dp'"), std::string::npos) << message;
    }
  });
}

// Two threads on one GPU are not served by NCCL: the ranks go on without, and say why.
TEST(Nccl, GoesOnStagedWhereThreadsShareAGpu) {
  const Gpus gpus;
  run_as_ranks(2, [](Communicator& world) {
    Stream stream(Device{DeviceKind::cuda, 0});
    const std::string transport = attach_device(world, stream);
    EXPECT_NE(transport.find("ranks 0 and 1 are threads on one GPU"), std::string::npos) << transport;
    const PlaceOnDevice place(stream);
    communicator_cases()[0].run(world);
    world.use_device(nullptr);
  });
}

}  // namespace
}  // namespace transxssm
