// Everything small of a checkpoint together: parts with four bytes of length before each, the manifest, then
// its tables.
#include "checkpoint/index.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(checkpoint_index, 4096) {
  fuzz::Bytes bytes(input);
  RawCheckpoint raw;
  raw.manifest = bytes.part();
  const Manifest manifest = decode_manifest(raw.manifest, "manifest.pb");
  for (int s = 0; s < manifest.num_shards(); ++s) raw.tables.emplace_back(bytes.part());
  raw.texts.resize(3);
  const Index index = make_index(raw, "step-000000001");
  for (size_t t = 0; t < index.sources.size(); ++t) {
    const TensorInfo& info = index.manifest.tensors[t];
    fuzz::expect(index.find(info.name, info.kind) == static_cast<int>(t),
                 "a tensor is not found by its name");
    int64_t held = 0;
    for (const Index::Source& source : index.sources[t])
      held += index.stored(source).box.extent.num_elements();
    fuzz::expect(!info.tied_to.empty() || held == info.global_shape.num_elements(),
                 "boxes do not hold what the tensor has");
  }
  summary(index);
}

}  // namespace transxssm
