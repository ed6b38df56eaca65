#include "parallel/sharding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transxssm {
namespace {

using testing::HasSubstr;

TEST(Box, CutsStayInside) {
  const Shape global{6, 8};
  EXPECT_EQ(whole_box(global), (Box{{0, 0}, {6, 8}}));
  const Box box = cut_box(global, 1, 2, 4);
  EXPECT_EQ(box, (Box{{0, 2}, {6, 4}}));
  EXPECT_EQ(box.to_string(), "[0:6, 2:6]");
  EXPECT_THROW(cut_box(global, 0, 4, 3), InternalError);
  EXPECT_FALSE(is_inside({{-1, 0}, {1, 1}}, global));
  EXPECT_FALSE(is_inside({{7, 0}, {0, 1}}, global));
  EXPECT_FALSE(is_inside({{0}, {1}}, global));
  EXPECT_FALSE(is_inside({{1, 0}, {INT64_MAX, 1}}, global));  // no overflow
  EXPECT_TRUE(is_inside({{6, 0}, {0, 8}}, global));
}

TEST(Units, CutCoversEveryUnitEquallyOften) {
  for (const int units : {1, 2, 3, 4, 8, 12}) {
    for (const int tp : {1, 2, 3, 4, 8, 16}) {
      const bool legal = units % tp == 0 || tp % units == 0;
      ASSERT_EQ(tp_error("KV", units, tp, true).empty(), legal);
      EXPECT_EQ(tp_error("H", units, tp, false).empty(), units % tp == 0);
      if (!legal) continue;
      std::vector<int> holders(static_cast<size_t>(units), 0);
      std::vector<int> owners(static_cast<size_t>(units), 0);
      for (int r = 0; r < tp; ++r) {
        const UnitShare share = cut_units("KV", units, tp, r, true);
        EXPECT_EQ(share.num_copies, std::max(1, tp / units));
        EXPECT_EQ(share.copy, r % share.num_copies);
        EXPECT_EQ(share.begin, static_cast<int64_t>(r) * units / tp);  // the unit its query heads use
        for (int64_t u = share.begin; u < share.begin + share.count; ++u) {
          ++holders[static_cast<size_t>(u)];
          owners[static_cast<size_t>(u)] += share.copy == 0;
        }
      }
      EXPECT_THAT(holders, testing::Each(std::max(1, tp / units)));
      EXPECT_THAT(owners, testing::Each(1));
    }
  }
}

TEST(Units, BoxIsInElements) {
  EXPECT_EQ(unit_box({32, 64}, 0, 8, cut_units("heads", 4, 2, 1, false)), (Box{{16, 0}, {16, 64}}));
}

TEST(Units, ErrorsNameTheLegalValues) {
  EXPECT_THAT(tp_error("model.num_heads", 12, 8, false),
              HasSubstr("model.num_heads is 12 and cannot be cut over tp 8: tp may be 1, 2, 3, 4, 6, 12."));
  EXPECT_THAT(tp_error("model.num_kv_heads", 2, 3, true), HasSubstr("tp may be 1, 2 or a multiple of 2."));
  EXPECT_THROW(cut_units("H", 4, 3, 0, false), UsageError);
}

TEST(Vocabulary, NeedNotDivide) {
  for (const int64_t vocabulary : {1, 5, 131, 8192}) {
    for (const int tp : {1, 2, 3, 4, 8}) {
      int64_t next = 0;
      for (int r = 0; r < tp; ++r) {
        const VocabularyShare share = cut_vocabulary(vocabulary, tp, r);
        EXPECT_EQ(share.begin, next);
        EXPECT_GE(share.count, 0);
        EXPECT_LE(share.count, share.padded);
        EXPECT_EQ(share.padded, (vocabulary + tp - 1) / tp);
        next += share.count;
      }
      EXPECT_EQ(next, vocabulary);
    }
  }
  EXPECT_EQ(cut_vocabulary(5, 4, 2).count, 1);  // 2 2 1 0
  EXPECT_EQ(cut_vocabulary(5, 4, 3).count, 0);
}

}  // namespace
}  // namespace transxssm
