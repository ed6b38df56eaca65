// Kills a test process that hangs, and says which test and what each rank was last doing. Linked into every
// test program, it installs itself: no test has to mention it.
#pragma once

#include <chrono>
#include <string_view>

namespace transxssm {

// Seconds one test may take: the environment variable TEST_WATCHDOG_SECONDS, or 100.
std::chrono::seconds watchdog_limit();

// Notes what a rank (a thread or a process) is about to do, for the watchdog's report. Thread-safe and cheap
// enough for a call per collective or schedule action; notes are forgotten when a test ends.
void watchdog_note(int rank, std::string_view action);

}  // namespace transxssm
