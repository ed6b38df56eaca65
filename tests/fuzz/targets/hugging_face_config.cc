// config.json of Hugging Face: what is accepted is exported so that the same model is read back.
#include "model/hugging_face.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(hugging_face_config, 2048) {
  const ModelConfig config = model_config_from_hugging_face(input);
  if (!problems(config).empty()) return;
  const std::string written = model_config_to_hugging_face(config, {});
  const auto again = fuzz::attempt([&] { return model_config_from_hugging_face(written); });
  fuzz::expect(again.has_value(), "a model that was accepted is refused when exported");
  fuzz::expect(model_config_to_hugging_face(*again, {}) == written, "an exported model is another");
  if (config.num_layers <= 64) hugging_face_tensors(config);
}

}  // namespace transxssm
