// The record of a rank that the others read: a file in a directory that jobs may share.
#include "launch/progress.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(progress, 512) {
  const std::string path = fuzz::real_file("progress-rank-0", input.substr(0, input.size() / 2));
  fuzz::real_file("progress-rank-1", input.substr(input.size() / 2));
  const auto records = read_progress(path.substr(0, path.rfind('/')), 2);
  fuzz::check_refusal(CommunicationError("{}", progress_table(records)));
}

}  // namespace transxssm
