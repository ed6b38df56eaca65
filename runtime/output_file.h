// One rule for every file that a user names as an output: an output never destroys an input or another
// output.
//
// - Everything that can be known is checked before the work, when the OutputFiles are made: the directory is
//   there and takes files (it is not made: a mistyped path would become a tree), the name is no directory, no
//   input of the command whatever link or other name leads to it, and no other output. UsageError.
// - What exists is replaced only where the user asked for it (`overwrite`); a symbolic link is replaced
//   itself, never what it leads to. Character devices, pipes and /dev/stdout are written as they are.
// - While the object lives the names are locked: a second job with one of them is refused. The locks go with
//   the process. Temporary files have names of their own (host, process, chance), lie beside the output, and
//   are removed when the work fails; a later job with the same output removes what a killed one left.
// - publish() moves all of it into place, synced. Of several files (a dataset) the last one is what makes it
//   whole: the old one goes first, the new one comes last, so that no reader takes a mix for a dataset.
// - What fails later, a full disk first of all, is an OutputError; nothing is left behind.
//
//   OutputFiles trace(files, {path}, {.overwrite = arguments.flag("--overwrite")});  // before the work
//   ...
//   trace.publish_text(text);                                                        // after it
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/name_lock.h"
#include "runtime/unfinished_files.h"

namespace transxssm {

struct OutputRules {
  bool overwrite = false;
  // What the command reads: no output may be one of them, nor replace a file in one that is a directory.
  std::vector<std::string> inputs = {};
};

class OutputFiles {
 public:
  // Checks and locks the targets: the files of one whole, what completes it last.
  OutputFiles(FileSystem& files, std::vector<std::string> targets, OutputRules rules);
  ~OutputFiles();  // removes the temporary files that were not published
  OutputFiles(const OutputFiles&) = delete;
  OutputFiles& operator=(const OutputFiles&) = delete;

  // Where to write what publish() moves to targets[target]. The file is not there yet: make it with create(),
  // or with any writer that makes, syncs and closes a new file of this name.
  const std::string& temporary(size_t target) const { return outputs_[target].temporary; }
  // The path of one more temporary file, which is never published.
  std::string scratch();
  // A new file at one of these paths; its errors are OutputErrors.
  std::unique_ptr<WritableFile> create(const std::string& temporary);
  // Every temporary(i) has been written, synced and closed. OutputError, also where a target has come up
  // meanwhile that may not be replaced.
  void publish();
  // The whole of a single target.
  void publish_text(std::string_view text);

 private:
  struct Output {
    std::string target, temporary;
    bool in_place = false;
  };
  void check(const std::string& target, bool in_place) const;
  void lock(const Output& output);
  std::string new_temporary(const std::string& target);
  void sync_directories();

  FileSystem& files_;
  OutputRules rules_;
  std::vector<Output> outputs_;
  std::vector<std::unique_ptr<NameLock>> locks_;
  std::vector<std::string> temporaries_;
  std::vector<std::unique_ptr<UnfinishedFile>> unfinished_;
};

}  // namespace transxssm
