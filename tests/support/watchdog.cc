#include "tests/support/watchdog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace transxssm {
namespace {

constexpr int kHungExitCode = 124;  // as timeout(1)

// One for the process, never destroyed: threads of a hung test may still write notes while the process exits.
struct Notes {
  std::mutex mutex;
  std::map<int, std::string> by_rank;
};

Notes& notes() {
  static Notes* instance = new Notes;
  return *instance;
}

class Watchdog : public testing::EmptyTestEventListener {
  using Clock = std::chrono::steady_clock;

 public:
  void OnTestStart(const testing::TestInfo& info) override {
    const std::lock_guard lock(mutex_);
    test_ = std::string(info.test_suite_name()) + "." + info.name();
    deadline_ = Clock::now() + watchdog_limit();
    running_ = true;
    if (!thread_.joinable()) thread_ = std::jthread([this](std::stop_token stop) { watch(stop); });
    changed_.notify_all();
  }

  void OnTestEnd(const testing::TestInfo&) override {
    {
      const std::lock_guard lock(mutex_);
      running_ = false;
    }
    const std::lock_guard lock(notes().mutex);
    notes().by_rank.clear();
  }

 private:
  void watch(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      if (!running_) {
        changed_.wait(lock, stop, [this] { return running_; });
      } else if (Clock::now() < deadline_) {
        const Clock::time_point deadline = deadline_;  // which changes while this waits
        changed_.wait_until(lock, stop, deadline, [] { return false; });
      } else {
        report_and_exit();
      }
    }
  }

  void report_and_exit() {
    std::fprintf(stderr, "\nwatchdog: test %s still runs after %lld s; the process ends here\n",
                 test_.c_str(), static_cast<long long>(watchdog_limit().count()));
    // A hung thread may hold the notes' lock: report without them rather than hang too.
    if (const std::unique_lock lock(notes().mutex, std::try_to_lock); lock.owns_lock()) {
      for (const auto& [rank, action] : notes().by_rank) {
        std::fprintf(stderr, "watchdog: rank %d was last seen at: %s\n", rank, action.c_str());
      }
    }
    std::fflush(stderr);
    _exit(kHungExitCode);
  }

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::string test_;
  Clock::time_point deadline_;
  bool running_ = false;
  std::jthread thread_;  // last: it stops before what it uses is destroyed
};

// gtest's listener list exists before main, so a static object can register; gtest owns and deletes the
// listener.
[[maybe_unused]] const bool registered = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new Watchdog);
  return true;
}();

}  // namespace

std::chrono::seconds watchdog_limit() {
  const char* text = std::getenv("TEST_WATCHDOG_SECONDS");
  const long seconds = text ? std::strtol(text, nullptr, 10) : 0;
  return std::chrono::seconds(seconds > 0 ? seconds : 100);
}

void watchdog_note(int rank, std::string_view action) {
  const std::lock_guard lock(notes().mutex);
  notes().by_rank[rank] = action;
}

}  // namespace transxssm
