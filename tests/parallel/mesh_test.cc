#include "parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "parallel/boundary.h"
#include "parallel/local.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

std::vector<int> members(const Communicator& group) {
  std::vector<int> ranks;
  for (int r = 0; r < group.size(); ++r) ranks.push_back(group.world_rank(r));
  return ranks;
}

TEST(Mesh, RanksAndCoordinatesAreInverse) {
  const MeshShape shape{2, 3, 1, 4};
  EXPECT_EQ(mesh_coordinate(shape, 0), (MeshCoordinate{0, 0, 0, 0}));
  EXPECT_EQ(mesh_coordinate(shape, 1), (MeshCoordinate{0, 0, 0, 1}));   // tp innermost
  EXPECT_EQ(mesh_coordinate(shape, 4), (MeshCoordinate{0, 1, 0, 0}));   // then dp
  EXPECT_EQ(mesh_coordinate(shape, 12), (MeshCoordinate{1, 0, 0, 0}));  // pp outermost
  for (int r = 0; r < shape.size(); ++r) EXPECT_EQ(mesh_rank(shape, mesh_coordinate(shape, r)), r);
}

TEST(Mesh, GroupsByAxis) {
  run_as_ranks(8, [](Communicator& world) {
    const int r = world.rank();
    Mesh mesh(world, {2, 2, 1, 2});
    EXPECT_EQ(members(mesh.tp()), (std::vector<int>{r / 2 * 2, r / 2 * 2 + 1}));
    EXPECT_EQ(members(mesh.dp()), (std::vector<int>{r / 4 * 4 + r % 2, r / 4 * 4 + r % 2 + 2}));
    EXPECT_EQ(members(mesh.pp()), (std::vector<int>{r % 4, r % 4 + 4}));
    const int replica = r % 4 / 2 * 2;  // its first rank
    EXPECT_EQ(members(mesh.model()), (std::vector<int>{replica, replica + 1, replica + 4, replica + 5}));
    EXPECT_EQ(members(mesh.embedding_pair()), members(mesh.pp()));
    EXPECT_EQ(members(mesh.edge(0, 1)), (std::vector<int>{r % 4, r % 4 + 4}));
    EXPECT_EQ(members(mesh.edge(1, 0)), (std::vector<int>{r % 4 + 4, r % 4}));
    EXPECT_EQ(mesh.edge(1, 0).name(), "pp 1->0");
    EXPECT_EQ(mesh.tp().rank(), mesh.coordinate().tp);
    EXPECT_EQ(mesh.dp().rank(), mesh.coordinate().dp);
    EXPECT_EQ(mesh.pp().rank(), mesh.coordinate().pp);
    EXPECT_EQ(&mesh.world(), &world);
    EXPECT_EQ(mesh.is_first_stage(), r < 4);
    EXPECT_EQ(mesh.is_last_stage(), r >= 4);
  });
}

TEST(Mesh, SharersAndMiddleStages) {
  run_as_ranks(4, [](Communicator& world) {
    const int r = world.rank();
    Mesh tensor(world, {1, 1, 1, 4});
    EXPECT_EQ(tensor.tp_share(1).size(), 1);
    EXPECT_EQ(members(tensor.tp_share(2)), (std::vector<int>{r / 2 * 2, r / 2 * 2 + 1}));
    EXPECT_EQ(members(tensor.tp_share(4)), (std::vector<int>{0, 1, 2, 3}));
    EXPECT_THROW(tensor.tp_share(3), InternalError);
    EXPECT_EQ(tensor.embedding_pair().size(), 1);

    Mesh stages(world, {4, 1, 1, 1});
    EXPECT_EQ(stages.embedding_pair().size(), r == 0 || r == 3 ? 2 : 1);
    if (r == 3) {
      EXPECT_EQ(members(stages.embedding_pair()), (std::vector<int>{0, 3}));
      EXPECT_EQ(stages.embedding_pair().rank(), 1);
      EXPECT_THROW(stages.edge(0, 1), InternalError);
    }
  });
}

TEST(Mesh, TrafficByAxisIsWhatEachAxisMoved) {
  run_as_ranks(4, [](Communicator& world) {
    Mesh mesh(world, {2, 1, 1, 2});
    std::vector<float> x(100);
    const Tensor tensor(x.data(), DType::f32, {100});
    const Boundary boundary(mesh.tp());
    boundary.enter_forward(tensor);
    boundary.leave_backward(tensor);
    boundary.enter_backward(tensor);  // half of 400 bytes to the other rank, the sum of the own half back
    boundary.leave_forward(tensor);
    const bool first = mesh.is_first_stage();
    Communicator& edge = mesh.edge(0, 1);
    (first ? edge.send(tensor, 1) : edge.receive(tensor, 0)).wait();
    std::map<std::string, int64_t> sent;
    for (const AxisTraffic& axis : mesh.traffic_by_axis()) sent[axis.axis] = axis.traffic.bytes_sent;
    EXPECT_EQ(sent.at("tp"), 800);
    EXPECT_EQ(sent.at("edge"), first ? 400 : 0);
    EXPECT_EQ(sent.at("dp"), 0);
    EXPECT_EQ(sent.at("model"), 0);
    EXPECT_EQ(sent.at("embedding"), 0);
    EXPECT_EQ(sent.at("tp_share"), 0);
    EXPECT_EQ(sent.at("world"), 0);  // making the mesh counts for no axis
  });
}

TEST(Boundary, SumsOnlyForwardAtLeaveAndBackwardAtEnter) {
  run_as_ranks(2, [](Communicator& tp) {
    float x = static_cast<float>(tp.rank() + 1);
    const Tensor tensor(&x, DType::f32, {1});
    const Boundary boundary(tp);
    boundary.enter_forward(tensor);
    boundary.leave_backward(tensor);
    EXPECT_EQ(x, static_cast<float>(tp.rank() + 1));
    boundary.leave_forward(tensor);
    EXPECT_EQ(x, 3);
    boundary.enter_backward(tensor);
    EXPECT_EQ(x, 6);
    EXPECT_THROW(Boundary(tp, SequencePlacement::split_over_tp), UsageError);
  });
}

std::string message(const MeshShape& shape, int world_size) {
  try {
    check_mesh(shape, world_size);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Mesh, ErrorsNameTheEquationAndLegalMeshes) {
  EXPECT_EQ(message({2, 2, 1, 2}, 8), "");
  EXPECT_THAT(message({2, 1, 1, 2}, 8),
              HasSubstr("pp 2 x dp 1 x cp 1 x tp 2 = 4 ranks, but the job has 8: start 4 "
                        "ranks, or choose one of pp 2 x dp 2 x cp 1 x tp 2;"));
  EXPECT_THAT(message({1, 1, 1, 1}, 3), HasSubstr("pp 1 x dp 3 x cp 1 x tp 1"));
  EXPECT_THAT(message({1, 0, 1, 1}, 1), HasSubstr("parallel.dp is 0"));
  EXPECT_THAT(message({1, 1, 2, 1}, 2), HasSubstr("parallel.cp is 2"));
  EXPECT_THROW(Mesh(*single_rank(), {1, 1, 1, 2}), UsageError);
}

}  // namespace
}  // namespace transxssm
