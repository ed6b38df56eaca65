// Who hangs: every rank keeps a record of what it is doing in a small memory-mapped file,
// <log directory>/progress-rank-<r>, which the others can read while it no longer answers, and a person after
// it died. Across hosts the records are as fresh as the shared file system makes them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

// What one rank was doing last.
struct Progress {
  int rank = 0;
  std::string host;
  int64_t pid = 0;
  int64_t step = 0;
  std::string action;      // "train 1B3", "save", ...
  bool waiting = false;    // for another rank
  std::string operation;   // "all_reduce dp #12", where waiting
  int peer = -1;           // the rank waited for
  double seconds_ago = 0;  // since the record changed
  std::string state;       // "stopped", "gone" where the operating system says so, else ""
  int failure = 0;         // exit code of the error that ends this rank; 0: none
  std::string message;     // of that error, cut to the record's size
};

// Rank 0, before any rank opens its record: removes what an earlier start left in `directory`.
void clear_progress(const std::string& directory);

// Creates this rank's record in `directory`, which must exist, and lets communicators report what this thread
// waits for. Only this thread writes it from then on. Throws UsageError where the file cannot be made.
void open_progress(const std::string& directory, int rank, int size);
// Notes what this rank does next; cheap. Does nothing before open_progress.
void publish_progress(int64_t step, std::string_view action);
// What ends this rank, for the one that reports the failures of all.
void publish_failure(int code, std::string_view message);
// Where open_progress put this process's record; "" before it.
const std::string& progress_directory();

// The records of `size` ranks; those that cannot be read are left out.
std::vector<Progress> read_progress(const std::string& directory, int size);
// A line a rank (of many ranks that do the same: one line for all of them), and a verdict that names the rank
// the others wait for.
std::string progress_table(const std::vector<Progress>& records);
// The table of this job; "" before open_progress.
std::string progress_table();

}  // namespace transxssm
