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
    const std::vector<FlatRange> parameters{{0, 10}, {10, 30}, {48, 27}};
    GradientReducer reducer(mesh.dp(), Tensor(gradient.data(), DType::f32, {75}),
                            make_buckets(parameters, 30));
    reducer.add_shared({10, 30}, mesh.tp_share(2));  // the second parameter is one copy on both tp ranks
    ASSERT_EQ(reducer.num_buckets(), 3);
    const int tp = mesh.coordinate().tp;
    // The same, whatever of the backward pass is told, and step after step.
    const std::vector<std::vector<int64_t>> steps{{}, {60, 48, 48, 20, 10, 10}, {10, 0, 0}, {}};
    for (const std::vector<int64_t>& told : steps) {
      for (size_t i = 0; i < gradient.size(); ++i) {
        gradient[i] = static_cast<float>(i) + 1000.0F * static_cast<float>(1 << world.rank());
      }
      for (const int64_t first : told) reducer.complete(first);
      reducer.finish();
      for (int i = 0; i < 75; ++i) {
        const float own = 1000.0F * static_cast<float>(1 << world.rank()) + static_cast<float>(i);
        const float over_dp =
            1000.0F * static_cast<float>((1 << tp) + (4 << tp)) + 2.0F * static_cast<float>(i);
        const float over_all = 15000.0F + 4.0F * static_cast<float>(i);
        const float expected = i >= 40 && i < 48 ? own : (i >= 10 && i < 40 ? over_all : over_dp);
        EXPECT_EQ(gradient[static_cast<size_t>(i)], expected) << i;
      }
    }
  });
}

// Tensor parallel ranks whose parts differ in size have other buckets. Their copies meet in the same step of
// the backward pass all the same, here with a sum of a layer between.
TEST(GradientReducer, SharersMeetWhateverTheirBuckets) {
  run_as_ranks(4, [](Communicator& world) {
    Mesh mesh(world, {1, 2, 1, 2});
    const int64_t own = mesh.coordinate().tp == 0 ? 4 : 40;  // then a copy, then a copy
    std::vector<double> gradient(static_cast<size_t>(own + 8), 1);
    const std::vector<FlatRange> parameters{{0, own}, {own, 4}, {own + 4, 4}};
    GradientReducer reducer(mesh.dp(), Tensor(gradient.data(), DType::f64, {own + 8}),
                            make_buckets(parameters, 12));
    reducer.add_shared(parameters[1], mesh.tp_share(2));
    reducer.add_shared(parameters[2], mesh.tp_share(2));
    EXPECT_EQ(reducer.num_buckets(), mesh.coordinate().tp == 0 ? 1 : 2);
    double layer = 1;
    for (const int64_t first : {own + 4, own}) {
      reducer.complete(first);
      mesh.tp().all_reduce(Tensor(&layer, DType::f64, {1}));
    }
    reducer.finish();
    for (int64_t i = 0; i < own + 8; ++i) EXPECT_EQ(gradient[static_cast<size_t>(i)], i < own ? 2 : 4) << i;
  });
}

TEST(GradientReducer, StartsABucketWhenItIsWhole) {
  run_as_ranks(2, [](Communicator& dp) {
    std::vector<double> gradient{0, 0, 3, 4};
    GradientReducer reducer(dp, Tensor(gradient.data(), DType::f64, {4}), {{2, 2}, {0, 2}});
    EXPECT_EQ(reducer.bucket(1), (FlatRange{0, 2}));
    reducer.complete(3);
    EXPECT_EQ(reducer.num_started(), 0);
    reducer.complete(2);
    EXPECT_EQ(reducer.num_started(), 1);
    gradient[0] = 1;  // the backward pass goes on
    gradient[1] = 2;
    reducer.complete(1);
    EXPECT_EQ(reducer.num_started(), 1);
    reducer.finish();
    EXPECT_EQ(gradient, (std::vector<double>{2, 4, 6, 8}));
    EXPECT_EQ(reducer.num_started(), 0);
    EXPECT_THROW(GradientReducer(dp, Tensor(gradient.data(), DType::f64, {4}), {{2, 3}}), InternalError);
  });
}

}  // namespace
}  // namespace transxssm
