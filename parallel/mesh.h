// The mesh of ranks: named axes pp (pipeline stages), dp (data), cp (context, reserved) and tp (tensor), tp
// innermost. Built once and passed; there are no global groups.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace transxssm {

struct MeshShape {
  int pp = 1;
  int dp = 1;
  int cp = 1;
  int tp = 1;
  int64_t size() const { return int64_t{pp} * dp * cp * tp; }
  std::string to_string() const;  // "pp 2 x dp 1 x cp 1 x tp 2"
  bool operator==(const MeshShape&) const = default;
};

// Throws UsageError naming the equation and the nearest legal meshes unless the axes are positive, cp is 1
// and their product is world_size.
void check_mesh(const MeshShape& shape, int world_size);

// Where a rank of the world stands: rank = ((pp * dp_size + dp) * cp_size + cp) * tp_size + tp.
struct MeshCoordinate {
  int pp = 0;
  int dp = 0;
  int cp = 0;
  int tp = 0;
  bool operator==(const MeshCoordinate&) const = default;
};
MeshCoordinate mesh_coordinate(const MeshShape& shape, int rank);
int mesh_rank(const MeshShape& shape, const MeshCoordinate& coordinate);

struct AxisTraffic {
  std::string axis;
  Traffic traffic;
};

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. UsageError as check_mesh.
  Mesh(Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  const MeshCoordinate& coordinate() const { return coordinate_; }
  bool is_first_stage() const { return coordinate_.pp == 0; }
  bool is_last_stage() const { return coordinate_.pp == shape_.pp - 1; }

  Communicator& world() { return world_; }
  Communicator& tp() { return *tp_; }  // rank = coordinate().tp; the other axes alike
  Communicator& dp() { return *dp_; }
  Communicator& pp() { return *pp_; }
  // The n consecutive tp ranks (n divides tp) that hold copies of one key/value head or state group.
  Communicator& tp_share(int n);
  // All pp x tp ranks of this rank's data replica: every logical parameter once (and its copies).
  Communicator& model() { return *model_; }
  // First (rank 0) and last stage of equal dp and tp, which both hold a tied embedding; of size one on a
  // middle stage and where pp is 1.
  Communicator& embedding_pair() { return *embedding_pair_; }
  // From one stage to a neighbouring one, either direction; the sender is rank 0, the receiver rank 1. One
  // first-in first-out queue for each directed edge: coarser ones can deadlock. Only on the two ranks it
  // joins.
  Communicator& edge(int from_stage, int to_stage);

  // What this rank has sent by axis: "world", "tp", "tp_share", "dp", "pp" (collectives over stages), "edge"
  // (stage to stage), "embedding", "model".
  std::vector<AxisTraffic> traffic_by_axis() const;

 private:
  Communicator& world_;
  MeshShape shape_;
  MeshCoordinate coordinate_;
  std::unique_ptr<Communicator> tp_, dp_, pp_, model_, embedding_pair_;
  std::map<int, std::unique_ptr<Communicator>> tp_shares_;              // by number of ranks
  std::map<std::pair<int, int>, std::unique_ptr<Communicator>> edges_;  // by (from, to) stage
};

}  // namespace transxssm
