#include "launch/signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <thread>

#include "launch/warnings.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

std::atomic<int> exit_signal{0};   // number of the first signal that asked to exit
std::atomic<int> go_on_signal{0};  // number of a signal that asked to save only
static_assert(std::atomic<int>::is_always_lock_free, "used in signal handlers");

// Of the handler alone, which never runs twice at a time.
int interrupts = 0;
timespec last_interrupt = {};
bool speaks = true;  // on one rank

constexpr char kSaving[] = "\nCtrl-C: this step is finished and saved, then exit 75\n";
constexpr char kOnceMore[] = "\nstill saving; Ctrl-C once more ends at once, without a save\n";

template <size_t N>
void say(const char (&text)[N]) {
  if (speaks) [[maybe_unused]]
    const ssize_t written = write(STDERR_FILENO, text, N - 1);
}

// One keystroke may come by several ways: what follows within a second is the same one.
void on_interrupt() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const auto seconds = static_cast<double>(now.tv_sec - last_interrupt.tv_sec) +
                       1e-9 * static_cast<double>(now.tv_nsec - last_interrupt.tv_nsec);
  if (interrupts > 0 && seconds < 1) return;
  last_interrupt = now;
  ++interrupts;
  if (interrupts == 1) say(kSaving);
  if (interrupts == 2) say(kOnceMore);
  if (interrupts == 3) _exit(128 + SIGINT);
}

void on_signal(int signal) {
  if (signal == SIGUSR2) {
    go_on_signal = signal;
    return;
  }
  int none = 0;
  exit_signal.compare_exchange_strong(none, signal);
  const int error = errno;  // of what is interrupted here
  if (signal == SIGINT) on_interrupt();
  errno = error;
}

constexpr int kSignals[] = {SIGUSR1, SIGUSR2, SIGINT, SIGTERM, SIGHUP};

sigset_t signal_set() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : kSignals) sigaddset(&set, signal);
  return set;
}

bool is_other_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
    if (const char* rank = std::getenv(name)) return std::atoi(rank) > 0;
  return false;
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
  interrupts = 0;
  speaks = !is_other_rank();
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  action.sa_mask = signal_set();
  for (int signal : kSignals) {
    struct sigaction before = {};
    sigaction(signal, nullptr, &before);
    if (signal == SIGHUP && before.sa_handler == SIG_IGN) continue;  // nohup
    sigaction(signal, &action, nullptr);
  }
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
  // With it: whether any rank has warnings that nobody has seen.
  double words[2] = {0, has_warnings() ? 1.0 : 0.0};
  double& word = words[0];
  if (request != StopRequest::none)
    word =
        static_cast<double>((static_cast<int64_t>(request) * kNumbers + (exit != 0 ? exit : go_on)) * kRanks +
                            (kRanks - 1 - world.rank()));
  world.all_reduce(Tensor(words, DType::f64, {2}), ReduceOp::max);
  if (words[1] != 0) print_warnings_of_all(world);
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
    case SIGHUP:
      return "SIGHUP";
    default:
      return "a signal";
  }
}

}  // namespace transxssm
