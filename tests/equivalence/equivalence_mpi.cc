// Ranks as processes give the same bits as ranks as threads, on every mesh of as many ranks as mpirun
// started.
#include <mpi.h>

#include <cstdio>

#include "parallel/mpi_communicator.h"
#include "tests/equivalence/cases.h"

using namespace transxssm;
using namespace transxssm::equivalence;

namespace {

constexpr int kSteps = 20;

void report(const MeshCase& mesh, const char* shape, const std::vector<std::string>& found, int& failures) {
  for (const std::string& line : found) std::printf("%s %s: %s\n", shape, mesh.name().c_str(), line.c_str());
  std::printf("%s %s %s\n", found.empty() ? "ok    " : "FAILED", shape, mesh.name().c_str());
  std::fflush(stdout);
  failures += static_cast<int>(found.size());
}

const Case& jamba_case() {
  static const std::vector<std::pair<std::string, Case>> all = kinds();
  for (const auto& [name, test] : all)
    if (name == "jamba") return test;
  throw InternalError("no kind jamba");
}

// The awkward shape also against the same mesh of threads, to the bit.
std::vector<std::string> compare_awkward(const MeshCase& mesh, const RunResult& processes) {
  static const RunResult one = run_threads(awkward_case(), {}, kSteps);
  const RunResult threads = run_threads(awkward_case(), mesh, kSteps);
  std::vector<std::string> found = differences(processes, one);
  if (processes.loss != threads.loss || processes.gradient_norm != threads.gradient_norm)
    found.push_back("losses or norms of processes and threads are not the same bits");
  if (processes.final_weights != threads.final_weights || processes.gradients != threads.gradients)
    found.push_back("weights or gradients of processes and threads are not the same bits");
  return found;
}

std::vector<std::string> compare_jamba(const RunResult& processes) {
  static const RunResult one = run_threads(jamba_case(), {}, 4);
  return differences(processes, one);
}

std::vector<std::string> compare_tiny(const RunResult& processes) {
  static const RunResult one = run_threads(tiny_case(), {}, kSteps);
  return differences(processes, one);
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
      const RunResult awkward = run_rank(awkward_case(), mesh, kSteps, *world);
      if (world->rank() == 0) report(mesh, "awkward", compare_awkward(mesh, awkward), failures);
      if (jamba_case().global_batch / mesh.shape.dp % mesh.microbatch_size == 0) {
        const RunResult jamba = run_rank(jamba_case(), mesh, 4, *world);
        if (world->rank() == 0) report(mesh, "jamba", compare_jamba(jamba), failures);
      }
      const RunResult tiny = run_rank(tiny_case(), mesh, kSteps, *world);
      if (world->rank() == 0) report(mesh, "tiny", compare_tiny(tiny), failures);
      world->barrier();
    }
    double sum = failures;
    world->all_reduce(Tensor(&sum, DType::f64, {1}));
    failures = static_cast<int>(sum);
  }
  MPI_Finalize();
  return failures == 0 && compared > 0 ? 0 : 1;
}
