// One job a run directory: an advisory lock on <run>/LOCK that the kernel drops when its process dies.
#pragma once

#include <string>

namespace transxssm {

class RunLock {
 public:
  // Rank 0 of a job, before it writes anything. Throws UsageError naming host, process id and start time of
  // the holder. Where the file system has no locks, warns and goes on.
  explicit RunLock(const std::string& run_dir);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace transxssm
