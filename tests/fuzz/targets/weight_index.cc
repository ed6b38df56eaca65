// model.safetensors.index.json beside two shards.
#include "checkpoint/hugging_face.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

std::string shard(const std::string& first, const std::string& second) {
  SafetensorsEntry a{.key = first, .dtype = DType::f32, .shape = {2, 2}, .begin = 0, .end = 16};
  SafetensorsEntry b{.key = second, .dtype = DType::bf16, .shape = {3}, .begin = 16, .end = 22};
  return encode_safetensors_header(std::vector{a, b}, 8) + std::string(22, '\0');
}

}  // namespace

FUZZ_TARGET(weight_index, 1024) {
  static fuzz::MemoryFiles files = [] {
    fuzz::MemoryFiles made;
    made.contents["fuzzed/a.safetensors"] = shard("embed", "norm");
    made.contents["fuzzed/b.safetensors"] = shard("head", "bias");
    return made;
  }();
  files.contents["fuzzed/model.safetensors.index.json"] = input;
  const WeightFolder folder(files, "fuzzed");
  for (const NamedShape& tensor : folder.tensors())
    fuzz::expect(static_cast<int64_t>(folder.read(tensor.name).size()) == tensor.shape.num_elements(),
                 "a tensor of another size than its shape");
}

}  // namespace transxssm
