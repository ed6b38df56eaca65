// The model's section in a checkpoint's manifest.
#include "model/config.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(model_config, 1024) {
  const ModelConfig config = model_config_from_text(input);
  const std::string written = to_text(config);
  fuzz::expect(to_text(model_config_from_text(written)) == written, "a model written again is another");
  if (!problems(config).empty()) return;
  mesh_problems(config, 2, 4);
  config.num_attention_layers();
}

}  // namespace transxssm
