#include "parallel/mesh.h"

#include <algorithm>
#include <cmath>

namespace transxssm {
namespace {

// The legal meshes of a world nearest to the wish (each axis counted in doublings), best first.
std::string nearest_meshes(const MeshShape& wish, int world_size) {
  std::vector<std::pair<double, MeshShape>> legal;
  const auto apart = [](int a, int b) { return std::abs(std::log2(a) - std::log2(std::max(b, 1))); };
  for (int pp = 1; pp <= world_size; ++pp) {
    if (world_size % pp != 0) continue;
    for (int dp = 1; dp <= world_size / pp; ++dp) {
      if ((world_size / pp) % dp != 0) continue;
      const MeshShape mesh{pp, dp, 1, world_size / pp / dp};
      // Changing dp changes least for the user: neither the cut of the model nor its memory.
      legal.emplace_back(3 * apart(mesh.tp, wish.tp) + 2 * apart(pp, wish.pp) + apart(dp, wish.dp), mesh);
    }
  }
  std::stable_sort(legal.begin(), legal.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(legal.size(), 4); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : "; ", legal[i].second.to_string());
  }
  return text;
}

}  // namespace

std::string MeshShape::to_string() const {
  return fmt::format("pp {} x dp {} x cp {} x tp {}", pp, dp, cp, tp);
}

void check_mesh(const MeshShape& shape, int world_size) {
  for (const auto& [name, size] :
       {std::pair{"pp", shape.pp}, {"dp", shape.dp}, {"cp", shape.cp}, {"tp", shape.tp}}) {
    if (size < 1)
      throw UsageError("parallel.{} is {}: every axis of the mesh has at least one rank.", name, size);
  }
  if (shape.cp != 1) {
    throw UsageError("parallel.cp is {}: context parallelism is reserved, set it to 1.", shape.cp);
  }
  if (shape.size() != world_size) {
    throw UsageError("{} = {} ranks, but the job has {}: start {} ranks, or choose one of {}.",
                     shape.to_string(), shape.size(), world_size, shape.size(),
                     nearest_meshes(shape, world_size));
  }
}

MeshCoordinate mesh_coordinate(const MeshShape& shape, int rank) {
  MeshCoordinate at;
  at.tp = rank % shape.tp;
  rank /= shape.tp;
  at.cp = rank % shape.cp;
  rank /= shape.cp;
  at.dp = rank % shape.dp;
  at.pp = rank / shape.dp;
  return at;
}

int mesh_rank(const MeshShape& shape, const MeshCoordinate& at) {
  return ((at.pp * shape.dp + at.dp) * shape.cp + at.cp) * shape.tp + at.tp;
}

Mesh::Mesh(Communicator& world, const MeshShape& shape) : world_(world), shape_(shape) {
  check_mesh(shape, world.size());
  coordinate_ = mesh_coordinate(shape, world.rank());
  const MeshCoordinate& at = coordinate_;
  // Ranks that differ only in one axis share the color: the rank of the group's member at 0 on that axis.
  const auto along = [&](const char* name, int MeshCoordinate::*axis) {
    MeshCoordinate origin = at;
    origin.*axis = 0;
    std::unique_ptr<Communicator> group = world.split(mesh_rank(shape, origin), at.*axis);
    group->set_name(name);
    return group;
  };
  tp_ = along("tp", &MeshCoordinate::tp);
  dp_ = along("dp", &MeshCoordinate::dp);
  pp_ = along("pp", &MeshCoordinate::pp);
  model_ = world.split(at.dp, world.rank());
  model_->set_name("model");

  for (int n = 1; n <= shape.tp; ++n) {
    if (shape.tp % n != 0) continue;
    std::unique_ptr<Communicator> share = tp_->split(at.tp / n, at.tp);
    share->set_name(fmt::format("tp share {}", n));
    tp_shares_.emplace(n, std::move(share));
  }

  const bool outer_stage = is_first_stage() || is_last_stage();
  embedding_pair_ = pp_->split(outer_stage ? 0 : at.pp, at.pp);  // a middle stage's is its own
  embedding_pair_->set_name("embedding");

  for (int stage = 0; stage + 1 < shape.pp; ++stage) {
    for (const auto& [from, to] : {std::pair{stage, stage + 1}, {stage + 1, stage}}) {
      const bool member = at.pp == from || at.pp == to;
      std::unique_ptr<Communicator> edge = pp_->split(member ? 0 : -1, at.pp == from ? 0 : 1);
      if (edge == nullptr) continue;
      edge->set_name(fmt::format("pp {}->{}", from, to));
      edges_.emplace(std::pair{from, to}, std::move(edge));
    }
  }
}

Communicator& Mesh::tp_share(int n) {
  const auto at = tp_shares_.find(n);
  TRANSXSSM_CHECK(at != tp_shares_.end(), "tp {} has no groups of {}", shape_.tp, n);
  return *at->second;
}

Communicator& Mesh::edge(int from_stage, int to_stage) {
  const auto at = edges_.find({from_stage, to_stage});
  TRANSXSSM_CHECK(at != edges_.end(), "stage {} has no edge {} -> {}", coordinate_.pp, from_stage, to_stage);
  return *at->second;
}

std::vector<AxisTraffic> Mesh::traffic_by_axis() const {
  const auto sum = [](const auto& communicators) {
    Traffic total;
    for (const auto& [key, communicator] : communicators) {
      total.bytes_sent += communicator->traffic().bytes_sent;
      total.messages += communicator->traffic().messages;
    }
    return total;
  };
  return {{"world", world_.traffic()},
          {"tp", tp_->traffic()},
          {"tp_share", sum(tp_shares_)},
          {"dp", dp_->traffic()},
          {"pp", pp_->traffic()},
          {"edge", sum(edges_)},
          {"embedding", embedding_pair_->traffic()},
          {"model", model_->traffic()}};
}

}  // namespace transxssm
