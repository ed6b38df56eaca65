// The conformance suite on NCCL and real GPUs: mpirun -n N test_nccl_gpu. Ranks beyond the number of GPUs
// share them.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <gtest/gtest.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "parallel/cuda/register.h"
#include "parallel/device_transport.h"
#include "parallel/mpi_communicator.h"
#include "runtime/cuda/register.h"
#include "tests/parallel/communicator_suite.h"

namespace transxssm {
namespace {

std::vector<int> nccl_cases() {
  std::vector<int> cases;
  for (size_t i = 0; i < communicator_cases().size(); ++i)
    if (!communicator_cases()[i].beyond_nccl) cases.push_back(static_cast<int>(i));
  return cases;
}

class NcclOnGpus : public testing::TestWithParam<int> {};

TEST_P(NcclOnGpus, Case) {
  const auto world = mpi_world();
  Stream stream(Device{DeviceKind::cuda, world->rank() % device_runtime().num_devices()});
  const std::string transport = attach_device(*world, stream);
  ASSERT_EQ(transport.substr(0, 5), "NCCL ") << transport;
  RecordProperty("transport", transport);
  try {
    const PlaceOnDevice place(stream, false);
    communicator_cases()[static_cast<size_t>(GetParam())].run(*world);
  } catch (const std::exception& error) {  // the other ranks cannot go on
    std::fprintf(stderr, "rank %d: %s\n", world->rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  world->use_device(nullptr);
}

INSTANTIATE_TEST_SUITE_P(Gpus, NcclOnGpus, testing::ValuesIn(nccl_cases()), [](const auto& instance) {
  return std::string(communicator_cases()[static_cast<size_t>(instance.param)].name);
});

}  // namespace
}  // namespace transxssm

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  testing::InitGoogleTest(&argc, argv);
  if (rank != 0) testing::GTEST_FLAG(brief) = true;  // failures only
  transxssm::register_cuda();
  transxssm::register_nccl();
  int failed = 77;  // ctest counts it as skipped
  if (transxssm::has_device())
    failed = RUN_ALL_TESTS();
  else if (rank == 0)
    std::fprintf(stderr, "skipped: no GPU that a driver serves\n");
  int worst = 0;
  MPI_Allreduce(&failed, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return worst;
}
