#include "launch/signals.h"

#include <csignal>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace transxssm {
namespace {

std::atomic<int> exit_signal{0};   // number of the first signal that asked to exit
std::atomic<int> go_on_signal{0};  // number of a signal that asked to save only
static_assert(std::atomic<int>::is_always_lock_free, "used in signal handlers");

void on_signal(int signal) {
  if (signal == SIGUSR2) {
    go_on_signal = signal;
  } else if (exit_signal.exchange(signal) != 0) {
    _exit(128 + signal);
  }
}

constexpr int kSignals[] = {SIGUSR1, SIGUSR2, SIGINT, SIGTERM};

sigset_t signal_set() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : kSignals) sigaddset(&set, signal);
  return set;
}

// Handlers must not run on a thread that computes: matrix kernels compiled at run time use the stack pointer
// as an ordinary register, and the kernel would write the signal's frame wherever it points. So the caller,
// and every thread it starts from now on, blocks the signals, and one thread does nothing but take them.
void take_signals_on_a_thread() {
  static pid_t owner = 0;  // a forked child has no such thread
  const sigset_t set = signal_set();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  if (owner == getpid()) return;
  owner = getpid();
  std::thread([set] {
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    while (true) pause();
  }).detach();
}

}  // namespace

void install_signal_handlers() {
  exit_signal = 0;
  go_on_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  action.sa_mask = signal_set();
  for (int signal : kSignals) sigaction(signal, &action, nullptr);
  take_signals_on_a_thread();
}

StopRequest pending_signal() {
  if (exit_signal != 0) return StopRequest::save_and_exit;
  return go_on_signal != 0 ? StopRequest::save_and_go_on : StopRequest::none;
}

AgreedSignal agree_on_signal(Communicator& world) {
  // Request, signal and rank in one exact number, so that one maximum decides all three; the lowest rank is
  // largest.
  constexpr int64_t kRanks = int64_t{1} << 24;
  constexpr int64_t kNumbers = 128;
  const int go_on = go_on_signal.exchange(0);
  const int exit = exit_signal;
  const StopRequest request = exit != 0    ? StopRequest::save_and_exit
                              : go_on != 0 ? StopRequest::save_and_go_on
                                           : StopRequest::none;
  double word = 0;
  if (request != StopRequest::none)
    word =
        static_cast<double>((static_cast<int64_t>(request) * kNumbers + (exit != 0 ? exit : go_on)) * kRanks +
                            (kRanks - 1 - world.rank()));
  world.all_reduce(Tensor(&word, DType::f64, {1}), ReduceOp::max);
  const auto agreed = static_cast<int64_t>(word);
  if (agreed == 0) return {};
  return {static_cast<StopRequest>(agreed / kRanks / kNumbers), static_cast<int>(agreed / kRanks % kNumbers),
          static_cast<int>(kRanks - 1 - agreed % kRanks)};
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    default:
      return "a signal";
  }
}

}  // namespace transxssm
