#include "checkpoint/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/rng.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

TEST(Plan, VolumeIsChecked) {
  EXPECT_EQ(checked_volume({}), 1);
  EXPECT_EQ(checked_volume({3, 4}), 12);
  EXPECT_EQ(checked_volume({3, 0}), 0);
  EXPECT_EQ(checked_volume({int64_t{1} << 59}), int64_t{1} << 59);
  EXPECT_EQ(checked_volume({int64_t{1} << 60}), std::nullopt);
  EXPECT_EQ(checked_volume({int64_t{1} << 32, int64_t{1} << 32}), std::nullopt);  // 2^64 is 0 in 64 bits
  EXPECT_EQ(checked_volume({0, int64_t{1} << 40, int64_t{1} << 40}), std::nullopt);
  EXPECT_EQ(checked_volume({-1}), std::nullopt);
}

TEST(Plan, PartitionsAreAccepted) {
  const auto accepted = [](const Shape& global, const std::vector<Box>& boxes) {
    EXPECT_EQ(partition_problem(global, boxes), "");
  };
  accepted({}, {{{}, {}}});
  accepted({0, 3}, {});
  accepted({4, 6}, {{{0, 0}, {4, 6}}});
  accepted({4, 6}, {{{0, 3}, {4, 3}}, {{0, 0}, {4, 3}}});
  // A pinwheel: no single cut separates the boxes.
  accepted({3, 3},
           {{{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}});
}

TEST(Plan, WhatIsNoPartitionIsRefused) {
  const auto refused = [](const Shape& global, const std::vector<Box>& boxes, const char* reason) {
    EXPECT_THAT(partition_problem(global, boxes), HasSubstr(reason));
  };
  const int64_t huge = INT64_MAX;
  refused({}, {{{}, {}}, {{}, {}}}, "overlap");
  refused({}, {}, "hold 0 of 1");
  refused({4, 6}, {{{0, 0}, {4, 5}}}, "hold 20 of 24");
  refused({4, 6}, {{{0, 0}, {4, 4}}, {{0, 3}, {4, 3}}}, "overlap");
  // The volumes add up; an overlap hides a gap.
  refused({4, 6}, {{{0, 0}, {2, 6}}, {{1, 0}, {2, 6}}}, "overlap");
  refused({4, 6}, {{{0, 1}, {4, 6}}}, "outside");
  refused({4, 6}, {{{0, -1}, {4, 6}}}, "outside");
  refused({4, 6}, {{{huge, 0}, {huge, 6}}}, "outside");
  refused({4, 6}, {{{4, 0}, {huge, 6}}}, "outside");
  refused({4, 6}, {{{0}, {4}}}, "outside");
  refused({4, 6}, {{{0, 0}, {0, 6}}}, "holds nothing");
  refused({huge, huge}, {}, "too large");
}

// Random boxes from cutting a shape again and again, read back through random targets.
TEST(Plan, CopiesEqualElementByElement) {
  const Rng rng(5, "plan_test");
  uint64_t draws = 0;
  const auto below = [&](int64_t bound) {
    return static_cast<int64_t>(rng.below(draws++, static_cast<uint64_t>(bound)));
  };
  for (int trial = 0; trial < 300; ++trial) {
    Shape global;
    const int rank = static_cast<int>(below(4));
    for (int d = 0; d < rank; ++d) global.append(1 + below(7));
    std::vector<Box> boxes{whole_box(global)};
    for (int64_t cuts = below(6); cuts > 0 && rank > 0; --cuts) {
      Box& box = boxes[static_cast<size_t>(below(static_cast<int64_t>(boxes.size())))];
      const int d = static_cast<int>(below(rank));
      if (box.extent[d] < 2) continue;
      Box other = box;
      box.extent[d] = 1 + below(box.extent[d] - 1);
      other.offset[d] += box.extent[d];
      other.extent[d] -= box.extent[d];
      boxes.push_back(other);
    }
    ASSERT_EQ(partition_problem(global, boxes), "");
    Box target = whole_box(global);
    for (int d = 0; d < rank; ++d) {
      target.offset[d] = below(global[d]);
      target.extent[d] = 1 + below(global[d] - target.offset[d]);
    }
    // Where the element of the global index is in a box.
    const auto place = [&](const Box& box, const Shape& index) {
      int64_t at = 0;
      for (int d = 0; d < rank; ++d) at = at * box.extent[d] + index[d] - box.offset[d];
      return at;
    };
    std::vector<std::pair<size_t, int64_t>> expected;
    for (int64_t i = 0; i < target.extent.num_elements(); ++i) {
      Shape index = target.offset;
      int64_t rest = i;
      for (int d = rank - 1; d >= 0; --d) {
        index[d] += rest % target.extent[d];
        rest /= target.extent[d];
      }
      for (size_t b = 0; b < boxes.size(); ++b) {
        bool inside = true;
        for (int d = 0; d < rank; ++d) {
          inside =
              inside && index[d] >= boxes[b].offset[d] && index[d] < boxes[b].offset[d] + boxes[b].extent[d];
        }
        if (inside) expected.emplace_back(b, place(boxes[b], index));
      }
    }
    std::vector<std::pair<size_t, int64_t>> actual(expected.size(), {SIZE_MAX, -1});
    for (const BoxCopy& copy : plan_copies(target, boxes)) {
      for (const CopyRun& run : copy.runs) {
        for (int64_t i = 0; i < run.count; ++i) {
          auto& slot = actual.at(static_cast<size_t>(run.target + i));
          EXPECT_EQ(slot.second, -1) << "filled twice";
          slot = {copy.source, run.source + i};
        }
      }
    }
    ASSERT_EQ(actual, expected) << "trial " << trial;
  }
}

TEST(Plan, RunsSpanWholeDims) {
  const auto copies = plan_copies({{2, 0, 0}, {3, 4, 5}}, std::vector<Box>{{{0, 0, 0}, {8, 4, 5}}});
  ASSERT_EQ(copies.size(), 1u);
  ASSERT_EQ(copies[0].runs.size(), 1u);
  EXPECT_EQ(copies[0].runs[0].source, 40);
  EXPECT_EQ(copies[0].runs[0].count, 60);
}

}  // namespace
}  // namespace transxssm
