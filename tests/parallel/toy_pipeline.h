// A pipeline of a toy model whose result is known to the bit, for threads and for MPI processes.
#pragma once

#include "parallel/pipeline.h"

namespace transxssm {

// Runs `steps` steps and an evaluation of every data parallel replica of `mesh` under the schedule and
// compares values, gradients and the order of calls with one rank's; reports through GoogleTest. `mesh` has
// tp 1.
void check_pipeline(Mesh& mesh, const Schedule& schedule, const Shape& boundary, int steps);

}  // namespace transxssm
