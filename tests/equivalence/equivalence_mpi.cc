// Ranks as processes give the same bits as ranks as threads, on every mesh of as many ranks as mpirun
// started.
#include <mpi.h>

#include <cstdio>

#include "parallel/mpi_communicator.h"
#include "tests/equivalence/cases.h"

using namespace transxssm;
using namespace transxssm::equivalence;

namespace {

int check(const MeshCase& mesh, const RunResult& processes) {
  const Case test = awkward_case();
  const RunResult threads = run_threads(test, mesh, 20);
  std::vector<std::string> found = differences(processes, run_threads(test, {}, 20));
  if (processes.loss != threads.loss || processes.gradient_norm != threads.gradient_norm)
    found.push_back("losses or norms of processes and threads are not the same bits");
  if (processes.final_weights != threads.final_weights || processes.gradients != threads.gradients)
    found.push_back("weights or gradients of processes and threads are not the same bits");
  for (const std::string& line : found) std::printf("%s: %s\n", mesh.name().c_str(), line.c_str());
  std::printf("%s %s\n", found.empty() ? "ok    " : "FAILED", mesh.name().c_str());
  return static_cast<int>(found.size());
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int failures = 0;
  int compared = 0;
  {
    const auto world = mpi_world();
    for (const MeshCase& mesh : meshes()) {
      if (mesh.shape.size() != world->size()) continue;
      ++compared;
      const RunResult result = run_rank(awkward_case(), mesh, 20, *world);
      if (world->rank() == 0) failures += check(mesh, result);
      world->barrier();
    }
    double sum = failures;
    world->all_reduce(Tensor(&sum, DType::f64, {1}));
    failures = static_cast<int>(sum);
  }
  MPI_Finalize();
  return failures == 0 && compared > 0 ? 0 : 1;
}
