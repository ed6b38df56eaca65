// What a user or scheduler can ask of a running job. SIGUSR1, SIGINT, SIGTERM and SIGHUP: save a checkpoint
// and exit with code 75. SIGUSR2: save and go on. Schedulers repeat themselves (Slurm: USR1, then TERM) while
// the save that the first signal asked for is under way, so no further signal interrupts it, but for a
// person's: the third Ctrl-C, each at least a second after the one before, ends at once with code 130. SIGHUP
// stays ignored where it was ignored at the start, as by nohup.
#pragma once

#include "parallel/communicator.h"

namespace transxssm {

enum class StopRequest { none, save_and_go_on, save_and_exit };

// Installs the handlers, which only note the signal, and starts the thread that takes them. Call it before
// any other thread is started: a signal must not interrupt a thread that computes.
void install_signal_handlers();

// What this process was asked; does not forget it.
StopRequest pending_signal();

struct AgreedSignal {
  StopRequest request = StopRequest::none;
  int signal = 0;  // its number
  int rank = 0;    // the lowest rank of `world` that got it
};

// Collective: the strongest request any rank has, the same answer on every rank; a save_and_go_on is
// forgotten with it. Call it at step boundaries: a rank that acted alone would leave the others waiting. Rank
// 0 prints the other ranks' warnings meanwhile (launch/warnings.h).
AgreedSignal agree_on_signal(Communicator& world);

// "SIGTERM"
const char* signal_name(int signal);

}  // namespace transxssm
