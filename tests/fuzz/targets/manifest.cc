// manifest.pb.
#include "checkpoint/manifest.h"

#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(manifest, 2048) {
  const Manifest manifest = decode_manifest(std::string(input), "manifest.pb");
  const std::string again = encode_manifest(manifest);
  fuzz::expect(encode_manifest(decode_manifest(again, "again")) == again,
               "a manifest written again says something else");
  fuzz::expect(manifest.num_shards() >= 1, "a manifest without shards");
}

}  // namespace transxssm
