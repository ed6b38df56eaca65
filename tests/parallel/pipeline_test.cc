#include "parallel/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "parallel/local.h"
#include "tests/parallel/toy_pipeline.h"

namespace transxssm {
namespace {

TEST(Pipeline, EverySchedule) {
  for (const int p : {1, 2, 3, 4}) {
    run_as_ranks(p, [p](Communicator& world) {
      Mesh mesh(world, {p, 1, 1, 1});
      for (const int m : {1, 2, 3, 7}) {
        check_pipeline(mesh, gpipe_schedule(p, m), {2, 3, 5}, 2);
        check_pipeline(mesh, one_f_one_b_schedule(p, m), {2, 3, 5}, 2);
      }
    });
  }
}

TEST(Pipeline, LargeBoundariesAndReplicas) {
  run_as_ranks(4, [](Communicator& world) {
    Mesh mesh(world, {2, 2, 1, 1});
    check_pipeline(mesh, one_f_one_b_schedule(2, 5), {1, 64, 128}, 2);
  });
}

// Weight gradients apart from input gradients, as zero-bubble schedules have them.
TEST(Pipeline, SplitBackward) {
  const Schedule schedule = parse_schedule(
      "microbatches 3\nstage_ranks 0 1\n"
      "0: 0F0 0F1 0B0 0F2 0B1 0W0 0B2 0W1 0W2\n"
      "1: 1F0 1B0 1F1 1B1 1W0 1F2 1B2 1W1 1W2\n");
  run_as_ranks(2, [&](Communicator& world) {
    Mesh mesh(world, {2, 1, 1, 1});
    check_pipeline(mesh, schedule, {1, 4, 2}, 3);
  });
}

TEST(Pipeline, OneFOneBHoldsAtMostItsShareOfMicrobatches) {
  run_as_ranks(4, [](Communicator& world) {
    Mesh mesh(world, {4, 1, 1, 1});
    const Pipeline one(mesh, one_f_one_b_schedule(4, 16), {1, 1, 1}, DType::f32);
    const Pipeline all(mesh, gpipe_schedule(4, 16), {1, 1, 1}, DType::f32);
    EXPECT_EQ(one.num_slots(), 4 - world.rank());
    EXPECT_EQ(all.num_slots(), 16);
    EXPECT_LE(one.buffer_bytes(), carved_bytes(DType::f32, {1, 1, 1}) * (2 * (4 - world.rank()) + 2 + 4));
    EXPECT_EQ(one.report().max_slots, (std::vector<int>{4, 3, 2, 1}));
  });
}

TEST(Pipeline, EdgesMoveOneBoundaryAMicrobatchEachWay) {
  run_as_ranks(3, [](Communicator& world) {
    Mesh mesh(world, {3, 1, 1, 1});
    check_pipeline(mesh, one_f_one_b_schedule(3, 4), {2, 8}, 1);  // one step and one evaluation
    const int64_t boundary = 2 * 8 * 8;
    if (world.rank() < 2) {
      EXPECT_EQ(mesh.edge(world.rank(), world.rank() + 1).traffic().bytes_sent, 2 * 4 * boundary);
    }
    if (world.rank() > 0) {
      EXPECT_EQ(mesh.edge(world.rank(), world.rank() - 1).traffic().bytes_sent, 4 * boundary);
    }
  });
}

class FailingWork final : public StageWork {
 public:
  explicit FailingWork(int failing_microbatch) : failing_(failing_microbatch) {}
  void forward(int k, int, const Tensor&, const Tensor&) override {
    if (k == failing_) throw std::runtime_error("stage failed");
  }
  void backward_input(int, int, const Tensor&, const Tensor&) override {}
  void backward_weight(int, int) override {}
  void reduce_gradients() override {}

 private:
  int failing_;
};

TEST(Pipeline, AFailingStageEndsTheOthers) {
  EXPECT_THROW(run_as_ranks(3,
                            [](Communicator& world) {
                              Mesh mesh(world, {3, 1, 1, 1});
                              Pipeline pipeline(mesh, one_f_one_b_schedule(3, 6), {4}, DType::f32);
                              FailingWork work(world.rank() == 1 ? 3 : -1);
                              pipeline.run(work);
                            }),
               std::runtime_error);
}

TEST(Pipeline, RefusesSchedulesOfOtherMeshes) {
  run_as_ranks(2, [](Communicator& world) {
    Mesh mesh(world, {2, 1, 1, 1});
    EXPECT_THROW(Pipeline(mesh, one_f_one_b_schedule(3, 2), {1}, DType::f32), InternalError);
    EXPECT_THROW(Pipeline(mesh, forward_only_schedule(2, 2), {1}, DType::f32), InternalError);
    EXPECT_THROW(Pipeline(mesh, lower(one_f_one_b_schedule(2, 2)), {1}, DType::f32), UsageError);
  });
}

}  // namespace
}  // namespace transxssm
