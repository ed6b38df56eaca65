// Ranks of several hosts: those of one host meet in shared memory, those of different hosts by messages, in
// one process. On one machine, with a transport between processes that moves large messages only while both
// sides look: mpirun -n 4 --mca btl tcp,self test_several_hosts_mpi. SEED=n repeats a run; other seeds are
// tried each time.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "parallel/mpi_communicator.h"
#include "parallel/pipeline.h"
#include "tests/parallel/communicator_suite.h"

namespace transxssm {
namespace {

constexpr int64_t kLarge = int64_t{8} << 20;  // floats: 32 MB
constexpr int kRanksOfAHost = 2;

uint64_t seed = 0;

// Rarely: what makes ranks of one host differ most is how far their messages are.
void pause(std::mt19937_64& random) {
  if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
}

Tensor tensor(std::vector<float>& x) {
  return Tensor(x.data(), DType::f32, {static_cast<int64_t>(x.size())});
}

// A stage that does nothing but sum over its host's ranks, with pauses.
class SumOverHost final : public StageWork {
 public:
  SumOverHost(Communicator& host, const Mesh& mesh, std::mt19937_64& random)
      : host_(host), first_(mesh.is_first_stage()), last_(mesh.is_last_stage()), random_(random) {}
  void forward(int k, int, const Tensor& input, const Tensor& output) override {
    sum(k, input, output, first_);
  }
  void backward_input(int k, int, const Tensor& d_output, const Tensor& d_input) override {
    sum(k, d_output, d_input, last_);
  }
  void backward_weight(int, int) override { pause(random_); }
  void reduce_gradients() override {}

 private:
  // What leaves a stage is twice what a source begins with, k + 1: in the first and the last element.
  void sum(int k, const Tensor& in, const Tensor& out, bool source) {
    pause(random_);
    const auto value = static_cast<float>(k + 1);
    if (!source) {
      EXPECT_EQ(in.data<float>()[0], 2 * value);
      EXPECT_EQ(in.data<float>()[in.num_elements() - 1], 2 * value);
    }
    std::vector<float> x(1000, value);
    host_.all_reduce(tensor(x));
    EXPECT_EQ(x.back(), static_cast<float>(host_.size()) * value);
    if (!out.empty()) out.data<float>()[0] = out.data<float>()[out.num_elements() - 1] = 2 * value;
  }

  Communicator& host_;
  bool first_, last_;
  std::mt19937_64& random_;
};

int launched_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

void guarded(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const std::exception& error) {  // the other ranks cannot go on
    std::fprintf(stderr, "%s (SEED=%llu)\n", error.what(), static_cast<unsigned long long>(seed));
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
}

TEST(SeveralHosts, PipelineOverHostsWithSumsInside) {
  guarded([] {
    const auto memory = mpi_world(), messages = mpi_world(int64_t{1} << 30, false);
    for (Communicator* world : {memory.get(), messages.get()}) world->set_timeout(std::chrono::seconds(20));
    const int me = memory->rank(), stages = memory->size() / kRanksOfAHost;
    const auto host = memory->split(me / kRanksOfAHost, me);
    std::mt19937_64 random(seed + static_cast<uint64_t>(me));
    Mesh mesh(*messages, {stages, 1, 1, kRanksOfAHost});
    Pipeline pipeline(mesh, one_f_one_b_schedule(stages, 6), {kLarge}, DType::f32);
    SumOverHost work(*host, mesh, random);
    for (int step = 0; step < 4; ++step) pipeline.run(work);
  });
}

// What ranks do between a message's start and its end, drawn alike on all of them: sums within the host and
// over hosts, and messages in circles over hosts.
TEST(SeveralHosts, AnyMixOfGroups) {
  guarded([] {
    const auto memory = mpi_world(), messages = mpi_world(int64_t{1} << 30, false);
    for (Communicator* world : {memory.get(), messages.get()}) world->set_timeout(std::chrono::seconds(20));
    const int me = memory->rank(), n = memory->size();
    const auto inside = memory->split(me / kRanksOfAHost, me),
               across = messages->split(me % kRanksOfAHost, me);
    std::mt19937_64 shared(seed), own(seed + static_cast<uint64_t>(me) + 1);
    std::vector<float> out(kLarge, static_cast<float>(me)), in(kLarge), small(100), large(100'000);
    for (int round = 0; round < 25; ++round) {
      const int distance = 1 + static_cast<int>(shared() % static_cast<uint64_t>(n - 1));
      const int64_t count = shared() % 3 == 0 ? kLarge : 10'000;
      const int to = (me + distance) % n, from = (me + n - distance) % n;
      std::fill(in.begin(), in.end(), -1.0F);
      pause(own);
      Request receive = messages->receive(tensor(in).slice(0, 0, count), from);
      Request send = messages->send(tensor(out).slice(0, 0, count), to);
      for (uint64_t i = shared() % 4; i > 0; --i) {
        pause(own);
        std::vector<float>& x = shared() % 2 == 0 ? small : large;
        std::fill(x.begin(), x.end(), 1.0F);
        Communicator& group = shared() % 3 == 0 ? *across : *inside;
        group.all_reduce(tensor(x));
        ASSERT_EQ(x[99], static_cast<float>(group.size()));
      }
      if (shared() % 2 == 0) memory->barrier();
      pause(own);
      (shared() % 2 == 0 ? receive : send).wait();
      receive.wait();
      send.wait();
      ASSERT_EQ(in[static_cast<size_t>(count - 1)], static_cast<float>(from));
    }
  });
}

// A world of which MPI's ranks 0, 1 and 2, 3 are hosts: the whole suite, with both transports in one
// communicator's groups.
class OverHosts : public testing::TestWithParam<int> {};

TEST_P(OverHosts, Case) {
  guarded([] {
    const auto world = mpi_world(int64_t{1} << 30, true, launched_rank() / kRanksOfAHost);
    communicator_cases()[static_cast<size_t>(GetParam())].run(*world);
    // The cases count ranks of the world from 0: the first host's alone can be one.
    const auto host = world->split(world->rank() / kRanksOfAHost, world->rank());
    if (world->rank() < kRanksOfAHost) communicator_cases()[static_cast<size_t>(GetParam())].run(*host);
    world->barrier();
  });
}

INSTANTIATE_TEST_SUITE_P(Mpi, OverHosts, testing::Range(0, static_cast<int>(communicator_cases().size())),
                         [](const auto& instance) {
                           return std::string(communicator_cases()[static_cast<size_t>(instance.param)].name);
                         });

// A receive that is dropped before its message is sent leaves its memory alone, and the message to the next
// one.
TEST(GivenUp, AReceive) {
  guarded([] {
    const auto world = mpi_world(int64_t{1} << 30, false);
    std::vector<float> x(kLarge, 1.0F), y(kLarge);
    if (world->rank() == 0) {
      world->receive(tensor(x), 1);
      x.assign(x.size(), 2.0F);
      world->barrier();
      world->receive(tensor(y), 1).wait();
      EXPECT_EQ(y.back(), 1.0F);
      EXPECT_EQ(x, std::vector<float>(x.size(), 2.0F));
    } else {
      world->barrier();
      if (world->rank() == 1) world->send(tensor(x), 0).wait();
    }
  });
}

// One that has begun to arrive, and a send that its receiver comes to late, are finished first.
TEST(GivenUp, WhatIsUnderWayIsFinished) {
  guarded([] {
    const auto world = mpi_world(int64_t{1} << 30, false);
    std::vector<float> x(kLarge, 1.0F);
    world->barrier();
    if (world->rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      world->receive(tensor(x), 0).wait();
      EXPECT_EQ(x.back(), 3.0F);
    } else if (world->rank() == 0) {
      x.assign(x.size(), 3.0F);
      world->send(tensor(x), 1);
      x.assign(x.size(), 4.0F);
    }
    world->barrier();
  });
}

// Last, since its process can communicate no more (tests with a parameter run after all others, in this
// order): the receiver does not come, so the memory is MPI's for ever.
class MemoryIsLost : public testing::TestWithParam<int> {};

TEST_P(MemoryIsLost, EndsAllCommunication) {
  static std::vector<float> x(kLarge, 1.0F);
  const auto world = mpi_world(int64_t{1} << 30, false);
  world->barrier();
  if (world->rank() == 0) {
    const auto start = std::chrono::steady_clock::now();
    world->send(tensor(x), 1);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    EXPECT_THROW(world->barrier(), CommunicationError);
    EXPECT_THROW(world->receive(tensor(x), 1), CommunicationError);
    EXPECT_THROW(mpi_world(), CommunicationError);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  // Here the memory lives on, so that MPI may end what it began.
  if (world->rank() == 1) world->receive(tensor(x), 0).wait();
  MPI_Barrier(MPI_COMM_WORLD);
}

INSTANTIATE_TEST_SUITE_P(Mpi, MemoryIsLost, testing::Values(0));

}  // namespace
}  // namespace transxssm

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const char* const given = std::getenv("SEED");
  transxssm::seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  MPI_Bcast(&transxssm::seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
  if (rank == 0) std::printf("SEED=%llu\n", static_cast<unsigned long long>(transxssm::seed));
  if (rank != 0) testing::GTEST_FLAG(brief) = true;  // failures only
  testing::InitGoogleTest(&argc, argv);
  int failed = RUN_ALL_TESTS();
  if (size != 4 || testing::UnitTest::GetInstance()->successful_test_count() == 0) failed = 1;
  int any_failed = 0;
  MPI_Allreduce(&failed, &any_failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (rank == 0) std::printf("%s on %d MPI ranks\n", any_failed == 0 ? "passed" : "FAILED", size);
  MPI_Finalize();
  return any_failed;
}
