// Files that must not outlive the work that makes them: where a signal ends the process, they are removed.
#pragma once

#include <string>

namespace transxssm {

// From now on SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE and SIGXCPU remove the files named by UnfinishedFile
// objects and then end the process as they would have; a file beyond the limit on sizes (SIGXFSZ) is an error
// of the write. Signals that are ignored or have a handler already stay as they are. For commands that run on
// their own: a training run has handlers of its own (launch/signals.h).
void remove_unfinished_files_on_signals();

// Marks the file at `path` as unfinished for as long as the object lives. The file is not opened or removed.
class UnfinishedFile {
 public:
  explicit UnfinishedFile(const std::string& path);
  ~UnfinishedFile();
  UnfinishedFile(const UnfinishedFile&) = delete;
  UnfinishedFile& operator=(const UnfinishedFile&) = delete;

 private:
  int slot_;  // -1: too many or too long, left to the destructors of the writers
};

}  // namespace transxssm
