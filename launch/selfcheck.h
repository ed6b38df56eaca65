// Is it right? Compares what this program computes with reference values, and a mesh with one rank; names the
// first tensor in the order of computation that is off.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/golden.h"
#include "runtime/output_file.h"

namespace transxssm {

// One tensor, or one number, against what it should be.
struct Comparison {
  std::string name;
  double error = 0;
  std::optional<double> bound;                             // none: shown only
  std::string where;                                       // the element that is farthest off
  bool good() const { return !bound || error <= *bound; }  // NaN is not good
};

// Tensors of one class, in the order of computation, with one kind of error.
struct ComparisonClass {
  std::string name;
  std::string measure;  // "of the largest"
  std::optional<double> torch_float32 =
      {};  // what PyTorch reaches in float32 on the project's reference folders
  std::vector<Comparison> comparisons = {};
};

// Largest difference over the largest expected magnitude.
Comparison compare_largest(const std::string& name, const Shape& shape, std::span<const float> got,
                           std::span<const double> expected, std::optional<double> bound);
// Norm of the difference over `scale`. A zero scale allows no difference.
Comparison compare_norm(const std::string& name, const Shape& shape, std::span<const float> got,
                        std::span<const double> expected, double scale, std::optional<double> bound);

// The results against the folder's figures; classes in the order of computation. In bf16 the folder says what
// rounding may cost; single gradients, and layers' outputs, are then shown without a bound.
std::vector<ComparisonClass> compare_golden(const GoldenFolder& golden, const GoldenResult& result,
                                            const Precision& precision = {});

// What every mesh must agree on over the first steps of a configuration; complete on rank 0.
struct MeshRun {
  std::vector<double> loss, gradient_norm;                // by step
  std::vector<LogicalTensor> weights, layers, gradients;  // at the start; of step 1
};
// Trains `steps` steps on the mesh and the data of `config`. Collective.
MeshRun run_mesh(const TrainConfig& config, int64_t steps, Communicator& world, Stream& stream);
std::vector<ComparisonClass> compare_meshes(const MeshRun& mesh, const MeshRun& alone);

// The first comparison beyond its bound, or null.
const Comparison* first_wrong(std::span<const ComparisonClass> classes);
// A table for a person: the worst of each class beside its bound.
std::string to_text(std::span<const ComparisonClass> classes);

// The whole of the two checks, printed on rank 0. NumericsError on every rank where a tensor is beyond its
// bound. Collective.
void check_golden(const GoldenFolder& golden, const TrainConfig& config, Communicator& world, Stream& stream,
                  OutputFiles* write = nullptr);  // on rank 0, for the results; null: none
// `alone` is `config` on one rank.
void check_mesh_run(const TrainConfig& config, const TrainConfig& alone, int64_t steps, Communicator& world,
                    Stream& stream);

}  // namespace transxssm
