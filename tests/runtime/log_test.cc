#include "runtime/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "runtime/error.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// What `act` prints on the terminal.
template <class Act>
std::string terminal(Act&& act) {
  testing::internal::CaptureStderr();
  act();
  return testing::internal::GetCapturedStderr();
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Log, WarningsComeOnceAndThoseOfOtherRanksAreKept) {
  const TemporaryDirectory directory;
  const std::string file = directory / "rank.txt";
  open_log_file(file);
  const std::string own = terminal([] {
    for (int i = 0; i < 3; ++i) log_warning("the disk is slow");
    log_warning("another {}", 1);
  });
  EXPECT_EQ(count(own, "warning: the disk is slow"), 1u);
  EXPECT_EQ(count(own, "warning: another 1"), 1u);
  EXPECT_EQ(count(directory.read(file), "the disk is slow"), 3u);
  EXPECT_THAT(take_warnings(), IsEmpty());

  set_log_rank(3);
  const std::string other = terminal([] {
    log_info("a line");
    for (int i = 0; i < 2; ++i) log_warning("of rank 3");
    log_error("failed");
    log_for_all(LogLevel::error, "rank 5: lost");
    log_to_file(LogLevel::error, "quiet");
  });
  EXPECT_THAT(other, Not(HasSubstr("a line")));
  EXPECT_THAT(other, Not(HasSubstr("of rank 3")));
  EXPECT_THAT(other, HasSubstr("error: rank 3: failed"));
  EXPECT_THAT(other, HasSubstr("error: rank 5: lost"));
  EXPECT_THAT(other, Not(HasSubstr("quiet")));
  EXPECT_THAT(directory.read(file), HasSubstr("quiet"));
  EXPECT_TRUE(has_warnings());
  EXPECT_THAT(take_warnings(), ElementsAre("of rank 3"));
  EXPECT_FALSE(has_warnings());
  set_log_rank(0);
  EXPECT_FALSE(note_warning("of rank 3"));  // said before
  EXPECT_TRUE(note_warning("of rank 4"));
}

TEST(Log, AFullDiskCostsOneWarning) {
  EXPECT_THROW(open_log_file("/no/such/directory/rank.txt"), UsageError);
  open_log_file("/dev/full");
  const std::string text = terminal([] {
    for (int i = 0; i < 3; ++i) log_info("line {}", i);
  });
  EXPECT_EQ(count(text, "some of its lines are lost"), 1u);
  EXPECT_EQ(count(text, "line "), 3u);
}

}  // namespace
}  // namespace transxssm
