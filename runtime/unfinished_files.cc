#include "runtime/unfinished_files.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>

namespace transxssm {
namespace {

// A signal handler may not allocate or lock: the names lie in slots that it only reads.
enum SlotState : int { kFree, kBeingWritten, kNamed };
struct Slot {
  std::atomic<int> state{kFree};
  char path[PATH_MAX];
};
constexpr int kSlots = 32;
Slot slots[kSlots];
static_assert(std::atomic<int>::is_always_lock_free, "used in signal handlers");
pid_t owner = 0;  // a child that has not called exec yet owns none of the files

void remove_and_end(int signal) {
  const int error = errno;
  if (::getpid() == owner) {
    for (const Slot& slot : slots)
      if (slot.state == kNamed) ::unlink(slot.path);
  }
  // The disposition is back at its default (SA_RESETHAND): the signal comes when this handler returns.
  ::raise(signal);
  errno = error;
}

}  // namespace

void remove_unfinished_files_on_signals() {
  owner = ::getpid();
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGXCPU, SIGXFSZ}) {
    struct sigaction old {};
    if (::sigaction(signal, nullptr, &old) != 0 || old.sa_handler != SIG_DFL) continue;
    struct sigaction action {};
    action.sa_handler = signal == SIGXFSZ ? SIG_IGN : remove_and_end;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(signal, &action, nullptr);
  }
}

UnfinishedFile::UnfinishedFile(const std::string& path) : slot_(-1) {
  if (path.size() >= PATH_MAX) return;
  for (int i = 0; i < kSlots; ++i) {
    int expected = kFree;
    if (!slots[i].state.compare_exchange_strong(expected, kBeingWritten)) continue;
    std::memcpy(slots[i].path, path.c_str(), path.size() + 1);
    slots[i].state = kNamed;
    slot_ = i;
    return;
  }
}

UnfinishedFile::~UnfinishedFile() {
  if (slot_ >= 0) slots[slot_].state = kFree;
}

}  // namespace transxssm
