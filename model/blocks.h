// The layers of the network. Each is two sub-layers around a residual stream (model/block.h has the
// interface):
//   h = w1 * x + mixer(norm(x))        y = w2 * h + mlp(norm(h))
// Norm, enter, mixer on local heads, leave, residual: collectives stand here, at the boundary, and nowhere
// else.
#pragma once

#include <memory>

#include "model/block.h"
#include "model/config.h"
#include "model/parameter.h"
#include "model/precision.h"
#include "model/rotary_table.h"
#include "model/shard.h"
#include "parallel/boundary.h"

namespace transxssm {

// What layers share.
struct LayerTables {
  RotaryTable positions;  // attention: [positions, P/2]
  RotaryTable chunk;      // state-space: [Q+1, N/2]
};

// Layer `layer` of the pattern: attention or state-space. Declares its parameters in `store`.
std::unique_ptr<Block> make_layer(const ModelConfig& config, const Shard& shard, const Precision& precision,
                                  int layer, ParameterStore& store, const LayerTables& tables,
                                  const Boundary& boundary, Communicator& group_sharers);

}  // namespace transxssm
