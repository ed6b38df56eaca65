// Device tensors staged through pinned memory, on a device that is host memory whose queues do nothing until
// the host waits for them: a missing wait shows as wrong elements.
#include "tests/support/clock_mark.h"
#include "parallel/device_transport.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/local.h"
#include "parallel/mesh.h"
#include "tests/parallel/communicator_suite.h"

namespace transxssm {
namespace {

class LazyQueue final : public DeviceQueue {
 public:
  void copy(const void* from, void* to, int64_t bytes) override {
    work_.push_back([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
  }
  void zero(void* memory, int64_t bytes) override {
    work_.push_back([=] { std::memset(memory, 0, static_cast<size_t>(bytes)); });
  }
  void wait_for(const DeviceQueue&) override {}
  void synchronize() override {
    for (const auto& one : work_) one();
    work_.clear();
  }
  std::unique_ptr<DeviceMark> mark() override { return std::make_unique<ClockMark>(); }
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>&) override {
    throw DeviceError("this device records nothing");
  }
  void launch(const DeviceGraph&) override { throw DeviceError("this device records nothing"); }
  void* native() const override { return nullptr; }

 private:
  std::vector<std::function<void()>> work_;
};

class LazyDevice final : public DeviceRuntime {
 public:
  LazyDevice() { use_device_runtime(this); }
  ~LazyDevice() override { use_device_runtime(nullptr); }
  std::string describe(int) override { return "host memory"; }
  int num_devices() override { return 1; }
  int64_t free_bytes(int) override { return 1; }
  void* allocate(int, int64_t bytes) override {
    void* memory = allocate_pinned(bytes);
    std::lock_guard lock(mutex_);
    allocations_[static_cast<std::byte*>(memory)] = bytes;
    return memory;
  }
  void release(int, void* memory) noexcept override {
    {
      std::lock_guard lock(mutex_);
      allocations_.erase(static_cast<std::byte*>(memory));
    }
    std::free(memory);
  }
  void* allocate_pinned(int64_t bytes) override { return std::calloc(static_cast<size_t>(bytes), 1); }
  void release_pinned(void* memory) noexcept override { std::free(memory); }
  bool owns(const void* memory) override {
    std::lock_guard lock(mutex_);
    for (const auto& [begin, bytes] : allocations_)
      if (memory >= begin && memory < begin + bytes) return true;
    return false;
  }
  std::unique_ptr<DeviceQueue> make_queue(int) override { return std::make_unique<LazyQueue>(); }

 private:
  std::mutex mutex_;
  std::map<std::byte*, int64_t> allocations_;
};

void run_on_device(int ranks, const std::function<void(Communicator&, Stream&)>& fn) {
  run_as_ranks(ranks, [&](Communicator& world) {
    Stream stream(Device{DeviceKind::cuda, 0});
    attach_device(world, stream);
    const PlaceOnDevice place(stream);
    fn(world, stream);
  });
}

class StagedConformance : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(StagedConformance, Case) {
  const auto [ranks, index] = GetParam();
  LazyDevice device;
  run_on_device(ranks, [&](Communicator& world, Stream&) {
    communicator_cases()[static_cast<size_t>(index)].run(world);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Staged, StagedConformance,
    testing::Combine(testing::Values(1, 2, 3),
                     testing::Range(0, static_cast<int>(communicator_cases().size()))),
    [](const auto& instance) {
      return std::string(communicator_cases()[static_cast<size_t>(std::get<1>(instance.param))].name) + "_" +
             std::to_string(std::get<0>(instance.param));
    });

// Host tensors of the same communicator go on as before, and a tensor is where its memory is.
TEST(StagedTransport, LeavesHostTensorsToTheHost) {
  LazyDevice device;
  run_on_device(2, [](Communicator& world, Stream&) {
    double x = world.rank() + 1;
    world.all_reduce(Tensor(&x, DType::f64, {1}));
    EXPECT_EQ(x, 3);
  });
}

// A call takes what was queued before it, and what is queued after it takes the result.
TEST(StagedTransport, IsOrderedOnTheStream) {
  LazyDevice device;
  run_on_device(2, [](Communicator& world, Stream& stream) {
    Arena memory(64, stream.device());
    const Tensor x = memory.carver().take(DType::f32, {1});
    float value = static_cast<float>(world.rank() + 1);
    const Tensor host(&value, DType::f32, {1});
    for (int i = 0; i < 3; ++i) {
      transfer(stream, host, x);
      world.all_reduce(x);
      transfer(stream, x, host);
    }
    stream.synchronize();
    EXPECT_EQ(value, 12);
  });
}

// A message's buffer is free for the next one when the wait returns.
TEST(StagedTransport, KeepsMessagesApart) {
  LazyDevice device;
  run_on_device(2, [](Communicator& world, Stream& stream) {
    Arena memory(256, stream.device());
    Carver carver = memory.carver();
    const Tensor first = carver.take(DType::f32, {1}), second = carver.take(DType::f32, {1});
    float values[2] = {5, 7};
    const Tensor hosts[2] = {Tensor(&values[0], DType::f32, {1}), Tensor(&values[1], DType::f32, {1})};
    if (world.rank() == 0) {
      transfer(stream, hosts[0], first);
      transfer(stream, hosts[1], second);
      world.send(first, 1).wait();
      world.send(second, 1).wait();
    } else {
      world.receive(first, 0).wait();
      world.receive(second, 0).wait();
      transfer(stream, first, hosts[0]);
      transfer(stream, second, hosts[1]);
      values[0] = values[1] = 0;
      stream.synchronize();
      EXPECT_EQ(values[0], 5);
      EXPECT_EQ(values[1], 7);
    }
    world.barrier();
  });
}

// The groups of a mesh serve device tensors as well, those of one rank among them.
TEST(StagedTransport, ServesEveryGroupOfAMesh) {
  LazyDevice device;
  run_on_device(4, [](Communicator& world, Stream& stream) {
    Mesh mesh(world, {.pp = 2, .tp = 2});
    Arena memory(256, stream.device());
    for (Communicator* group : {&mesh.tp(), &mesh.dp(), &mesh.pp(), &mesh.model(), &mesh.tp_share(1),
                                &mesh.tp_share(2), &mesh.embedding_pair()}) {
      Carver carver = memory.carver();
      const Tensor mine = carver.take(DType::f32, {1}), all = carver.take(DType::f32, {group->size()});
      float value = static_cast<float>(world.rank());
      transfer(stream, Tensor(&value, DType::f32, {1}), mine);
      group->all_gather(mine, all);
      std::vector<float> gathered(static_cast<size_t>(group->size()));
      transfer(stream, all, Tensor(gathered.data(), DType::f32, {group->size()}));
      stream.synchronize();
      for (int r = 0; r < group->size(); ++r)
        EXPECT_EQ(gathered[static_cast<size_t>(r)], static_cast<float>(group->world_rank(r)))
            << group->name();
    }
  });
}

}  // namespace
}  // namespace transxssm
