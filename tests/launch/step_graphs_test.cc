// When steps are recorded, launched again, and done plainly.
#include "launch/step_graphs.h"

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/support/guarded_device.h"

namespace transxssm {
namespace {

class StepGraphsTest : public testing::Test {
 protected:
  // What `work` was called for, and what the device did of it.
  void run(const StepGraphs::Variant& variant) {
    graphs_.run(variant, [this] {
      ++called_;
      if (waits_) stream_.synchronize();
      Scratch scratch(stream_, scratch_);
      submit(*stream_.queue(), [this] { ++done_; });
    });
    stream_.synchronize();
  }
  void expect(int called, int done) {
    EXPECT_EQ(called_, called);
    EXPECT_EQ(done_, done);
  }

  WithGuardedDevice guarded_;
  Stream stream_{Device{DeviceKind::cuda, 0}};
  StepGraphs graphs_{stream_};
  int64_t scratch_ = 1000;
  bool waits_ = false;
  int called_ = 0, done_ = 0;
};

TEST_F(StepGraphsTest, RecordsTheSecondOfEachVariant) {
  for (int i = 0; i < 4; ++i) run({false, true});
  expect(2, 4);
  EXPECT_EQ(graphs_.num_launched(), 3);
  for (int i = 0; i < 4; ++i) run({true, true});
  expect(4, 8);
  run({false, true});
  expect(4, 9);
  EXPECT_EQ(graphs_.num_recorded(), 2);
}

// Memory that a graph knows may have been freed.
TEST_F(StepGraphsTest, RecordsAnewWhereScratchMemoryHasGrown) {
  for (int i = 0; i < 3; ++i) run({});
  { Scratch larger(stream_, 2000); }
  run({});  // plainly
  expect(3, 4);
  for (int i = 0; i < 3; ++i) run({});
  expect(4, 7);
  EXPECT_EQ(graphs_.num_recorded(), 2);
}

TEST_F(StepGraphsTest, ForgetsWhatWasUsedLongAgo) {
  const auto variant = [](int i) { return StepGraphs::Variant(static_cast<size_t>(i), true); };
  for (int i = 0; i < 8; ++i)
    for (int times = 0; times < 2; ++times) run(variant(i));
  expect(16, 16);
  run(variant(0));  // used now
  run(variant(8));  // in the place of 1
  expect(17, 18);
  run(variant(0));
  expect(17, 19);
  run(variant(1));
  expect(18, 20);
}

TEST_F(StepGraphsTest, GoesOnPlainlyWhereNothingCanBeRecorded) {
  waits_ = true;
  run({});
  run({});  // recorded in vain, then called
  run({});
  expect(4, 3);
  EXPECT_EQ(graphs_.num_launched(), 0);
}

}  // namespace
}  // namespace transxssm
