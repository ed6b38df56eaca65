// The model's section in a checkpoint's manifest.
#include "model/config.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(model_config, 1024) {
  const ModelConfig config = model_config_from_text(input);
  const std::string written = to_text(config);
  fuzz::expect(to_text(model_config_from_text(written)) == written, "a model written again is another");
  std::vector<std::string> found = problems(config);
  if (found.empty()) found = mesh_problems(config, 2, 4);
  for (const std::string& problem : found) fuzz::check_refusal(UsageError("{}", problem));
}

}  // namespace transxssm
