// How a rank waits: it looks again and again for some microseconds, then lets others have the core between
// two looks, then sleeps, the longer it has waited; always with a time limit.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <iterator>
#include <string>
#include <thread>

#include "parallel/communicator.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kSpins = 200;           // some microseconds: a peer on another core that is nearly there
constexpr microseconds kYields(200);  // then whoever else wants the core; what ranks in step differ by
// Then little of it: a sleep is a part of the wait so far, so that it delays what it waits for by that part.
constexpr int kSleepPart = 32;
constexpr microseconds kShortestSleep(30), kLongestSleep(250);

std::atomic<WaitObserver> wait_observer{nullptr};

class ObservedWait {
 public:
  void enter(const WaitStatus& status) {
    observer_ = wait_observer.load(std::memory_order_acquire);
    if (observer_ != nullptr) observer_(&status);
  }
  // A wait that ends in an error is the last that the others hear of: it stays as it is.
  ~ObservedWait() {
    if (observer_ != nullptr && std::uncaught_exceptions() == exceptions_) observer_(nullptr);
  }

 private:
  WaitObserver observer_ = nullptr;
  const int exceptions_ = std::uncaught_exceptions();
};

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void set_wait_observer(WaitObserver observer) {
  wait_observer.store(observer, std::memory_order_release);
}

std::string Communicator::where(const char* operation, int64_t sequence) const {
  return fmt::format("Rank {} in {} #{} of '{}'", world_rank(rank()), operation, sequence, name_);
}

void Communicator::wait_until(Awaited& awaited, const char* operation, int64_t sequence) {
  try {
    for (int i = 0; i < kSpins; ++i) {
      if (awaited.poll()) return;
      relax();
    }
    int first = 0;
    while (first + 1 < size() && !awaited.is_missing(first)) ++first;
    ObservedWait observed;
    if (awaited.is_idle()) observed.enter({name_.c_str(), operation, sequence, world_rank(first)});
    const Clock::time_point start = Clock::now();
    while (!awaited.poll()) {
      check_peers();
      progress();
      const Clock::time_point now = Clock::now();
      const Clock::duration waited = now - start, silence = now - awaited.last_sign(start);
      if (silence > settings_->timeout) {
        std::vector<int> peers;
        for (int r = 0; r < size(); ++r) {
          if (awaited.is_missing(r)) peers.push_back(world_rank(r));
        }
        std::sort(peers.begin(), peers.end());
        const auto described = [&](int rank) {
          const auto at = static_cast<size_t>(rank);
          return at < settings_->hosts.size() ? fmt::format("{} ({})", rank, settings_->hosts[at])
                                              : std::to_string(rank);
        };
        std::vector<std::string> names;
        std::transform(peers.begin(), peers.end(), std::back_inserter(names), described);
        throw CommunicationError(
            "waited {:.1f} s for rank{} {}, which failed, hangs or runs something else: look at its log",
            std::chrono::duration<double>(silence).count(), peers.size() > 1 ? "s" : "",
            fmt::join(names, ", "));
      }
      if (waited < kYields) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(
            std::clamp<Clock::duration>(waited / kSleepPart, kShortestSleep, kLongestSleep));
      }
    }
  } catch (const CommunicationError& error) {
    throw CommunicationError("{}: {}", where(operation, sequence), error.what());
  }
}

}  // namespace transxssm
