// The conformance suite on MPI processes: mpirun -n N test_communicator_mpi. Through shared memory; by
// messages; and by messages cut into small parts, the path of those beyond 2 GiB.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "parallel/mpi_communicator.h"
#include "tests/parallel/communicator_elements.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/parallel/toy_pipeline.h"

namespace transxssm {
namespace {

class MpiConformance : public testing::TestWithParam<int> {};

TEST_P(MpiConformance, Case) {
  for (const auto& [part, shared] :
       {std::pair{int64_t{1} << 30, true}, {int64_t{1} << 30, false}, {int64_t{100'000}, false}}) {
    const auto world = mpi_world(part, shared);
    try {
      communicator_cases()[static_cast<size_t>(GetParam())].run(*world);
    } catch (const std::exception& error) {  // the other ranks cannot go on
      std::fprintf(stderr, "rank %d: %s\n", world->rank(), error.what());
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
  }
}

// Through shared memory and by messages: the same bits, and the same bytes counted.
TEST(MpiSharedMemory, GivesTheBitsOfMessages) {
  const auto shared = mpi_world(), messages = mpi_world(int64_t{1} << 30, false);
  const int me = shared->rank(), n = shared->size();
  for (const int64_t count : {1, 2047, 5000, 300'007, 2'000'003}) {
    std::vector<BFloat16> a, b;
    for (int64_t i = 0; i < count; ++i) a.push_back(to_bfloat16(element<float>(me, i)));
    b = a;
    const auto same = [&] { return std::memcmp(a.data(), b.data(), a.size() * sizeof(BFloat16)) == 0; };
    shared->all_reduce(Placed(a));
    messages->all_reduce(Placed(b));
    EXPECT_TRUE(same()) << count;
    a.resize(static_cast<size_t>(n * count), a.front());
    b = a;
    {
      const Placed x(a), y(b);
      shared->reduce_scatter(x, x.slice(me * count, count));
      messages->reduce_scatter(y, y.slice(me * count, count));
      EXPECT_TRUE(same()) << count;
      shared->all_gather(x.slice(me * count, count), x);
      messages->all_gather(y.slice(me * count, count), y);
      EXPECT_TRUE(same()) << count;
    }
    EXPECT_EQ(shared->traffic().bytes_sent, messages->traffic().bytes_sent);
  }
}

TEST(MpiSharedMemory, ALostRankIsNamed) {
  const auto world = mpi_world();
  const auto group = world->split(0, -world->rank());  // backwards: world ranks in the message
  group->set_name("stuck");
  std::vector<float> x(1'000'000);
  group->all_reduce(Placed(x));
  if (world->rank() != world->size() - 1) {  // the last one does not come
    group->set_timeout(std::chrono::milliseconds(100));
    std::string message;
    try {
      group->all_reduce(Placed(x));
    } catch (const CommunicationError& error) {
      message = error.what();
    }
    EXPECT_NE(message.find("Rank " + std::to_string(world->rank()) + " in all_reduce #1 of 'stuck'"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find(std::to_string(world->size() - 1) + ", which failed"), std::string::npos)
        << message;
  }
  world->set_timeout(std::chrono::seconds(300));
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(MpiPipeline, EverySchedule) {
  const auto world = mpi_world();
  const int p = world->size();
  Mesh mesh(*world, {p, 1, 1, 1});
  for (const int m : {1, 3, 7}) {
    check_pipeline(mesh, gpipe_schedule(p, m), {2, 3, 5}, 2);
    check_pipeline(mesh, one_f_one_b_schedule(p, m), {1, 64, 128}, 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Mpi, MpiConformance,
                         testing::Range(0, static_cast<int>(communicator_cases().size())),
                         [](const auto& instance) {
                           return std::string(communicator_cases()[static_cast<size_t>(instance.param)].name);
                         });

}  // namespace
}  // namespace transxssm

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank != 0) testing::GTEST_FLAG(brief) = true;  // failures only
  testing::InitGoogleTest(&argc, argv);
  // Started without a launcher the program would pass while testing nothing.
  int failed = RUN_ALL_TESTS();
  if (size < 2 || testing::UnitTest::GetInstance()->successful_test_count() == 0) failed = 1;
  int any_failed = 0;
  MPI_Allreduce(&failed, &any_failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (rank == 0) std::printf("%s on %d MPI ranks\n", any_failed == 0 ? "passed" : "FAILED", size);
  MPI_Finalize();
  return any_failed;
}
