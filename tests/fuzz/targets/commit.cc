// COMMIT, and the names of directories of checkpoints.
#include "checkpoint/layout.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(commit, 128) {
  if (const auto commit = parse_commit(input))
    fuzz::expect(encode_commit(*commit) == input && is_uuid(commit->uuid), "COMMIT has two spellings");
  if (const auto step = parse_step_name(input))
    fuzz::expect(step_name(*step) == input, "a step's directory has two names");
  for (const Aside aside : {Aside::writing, Aside::deleted, Aside::replaced}) {
    const auto step = parse_aside_name(aside, input);
    if (!step) continue;
    const std::string uuid(input.substr(input.size() - 32));
    fuzz::expect(aside_name(aside, *step, uuid) == input, "a directory beside the steps has two names");
  }
  directory_of(std::string(input));
  name_of(std::string(input));
}

}  // namespace transxssm
