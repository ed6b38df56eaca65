// The right to write a file of some name, held by one process at a time on the machines that share the disk.
#pragma once

#include <memory>
#include <string>

#include "runtime/unfinished_files.h"

namespace transxssm {

// An advisory lock on a small file. The kernel lets go of it when the process ends, however it ends; the file
// of a killed process is taken over. Some network disks know no such locks: `held` is then false, and
// different temporary names are all that keeps two jobs apart.
class NameLock {
 public:
  // Throws std::system_error where the file cannot be made, EWOULDBLOCK with the holder where it is held.
  explicit NameLock(const std::string& path);
  ~NameLock();  // removes the file
  NameLock(const NameLock&) = delete;
  NameLock& operator=(const NameLock&) = delete;
  bool held() const { return fd_ >= 0; }

 private:
  std::string path_;
  int fd_ = -1;
  std::unique_ptr<UnfinishedFile> unfinished_;
};

std::string host_name();  // of this machine, with letters, digits, dots and dashes alone; at most 64 bytes

}  // namespace transxssm
