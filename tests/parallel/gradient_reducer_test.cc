#include "parallel/gradient_reducer.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/local.h"
#include "parallel/mesh.h"

namespace transxssm {
namespace {

TEST(Buckets, HoldWholeParametersFromTheLastToTheFirst) {
  const std::vector<FlatRange> parameters{{0, 10}, {10, 30}, {48, 16}, {64, 5}, {69, 0}, {69, 6}};
  EXPECT_EQ(make_buckets(parameters, 30), (std::vector<FlatRange>{{48, 27}, {10, 30}, {0, 10}}));
  EXPECT_EQ(make_buckets(parameters, 1),
            (std::vector<FlatRange>{{69, 6}, {64, 5}, {48, 16}, {10, 30}, {0, 10}}));
  EXPECT_EQ(make_buckets(parameters, 1000), (std::vector<FlatRange>{{0, 75}}));
  EXPECT_TRUE(make_buckets({}, 10).empty());
  EXPECT_EQ(default_bucket_elements(8), 40'000'000);
  EXPECT_EQ(default_bucket_elements(64), 64'000'000);
}

TEST(GradientReducer, SumsOverDataRanksAndSharersOnce) {
  run_as_ranks(4, [](Communicator& world) {
    Mesh mesh(world, {1, 2, 1, 2});
    std::vector<float> gradient(75);
    for (size_t i = 0; i < gradient.size(); ++i) {
      gradient[i] = static_cast<float>(i) + 1000.0F * static_cast<float>(1 << world.rank());
    }
    const std::vector<FlatRange> parameters{{0, 10}, {10, 30}, {48, 27}};
    GradientReducer reducer(mesh.dp(), Tensor(gradient.data(), DType::f32, {75}),
                            make_buckets(parameters, 30));
    reducer.add_shared({10, 30}, mesh.tp_share(2));  // the second parameter is one copy on both tp ranks
    ASSERT_EQ(reducer.num_buckets(), 3);
    reducer.reduce_all();
    const int tp = mesh.coordinate().tp;
    for (int i = 0; i < 75; ++i) {
      const float own = 1000.0F * static_cast<float>(1 << world.rank()) + static_cast<float>(i);
      const float over_dp =
          1000.0F * static_cast<float>((1 << tp) + (4 << tp)) + 2.0F * static_cast<float>(i);
      const float over_all = 15000.0F + 4.0F * static_cast<float>(i);
      const float expected = i >= 40 && i < 48 ? own : (i >= 10 && i < 40 ? over_all : over_dp);
      EXPECT_EQ(gradient[static_cast<size_t>(i)], expected) << i;
    }
  });
}

TEST(GradientReducer, OneBucketAtATime) {
  run_as_ranks(2, [](Communicator& dp) {
    std::vector<double> gradient{1, 2, 3, 4};
    GradientReducer reducer(dp, Tensor(gradient.data(), DType::f64, {4}), {{2, 2}, {0, 2}});
    EXPECT_EQ(reducer.bucket(1), (FlatRange{0, 2}));
    reducer.reduce(0);
    EXPECT_EQ(gradient, (std::vector<double>{1, 2, 6, 8}));
    reducer.reduce(1);
    EXPECT_EQ(gradient, (std::vector<double>{2, 4, 6, 8}));
    EXPECT_THROW(GradientReducer(dp, Tensor(gradient.data(), DType::f64, {4}), {{2, 3}}), InternalError);
  });
}

}  // namespace
}  // namespace transxssm
