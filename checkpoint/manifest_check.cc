#include "checkpoint/manifest_check.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "checkpoint/layout.h"

namespace transxssm {
namespace {

constexpr size_t kMaxFiles = 2 * static_cast<size_t>(kMaxShards) + 3;

// Exactly the names this program gives, in its order.
void check_files(const Manifest& manifest, const std::string& file) {
  const size_t count = manifest.files.size();
  if (count < 5 || count % 2 == 0 || count > kMaxFiles) {
    throw CheckpointError("{}: files lists {} entries", file, count);
  }
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const int shard = static_cast<int>(i / 2);
    std::string expected = i % 2 == 0 ? data_file(shard) : table_file(shard);
    if (i + 3 == count) expected = kConfigFile;
    if (i + 2 == count) expected = kTokenizerFile;
    if (i + 1 == count) expected = kBuildFile;
    if (manifest.files[i].path != expected) {
      throw CheckpointError("{}: files[{}] is not {}", file, i, expected);
    }
    if (manifest.files[i].bytes < 0 || __builtin_add_overflow(total, manifest.files[i].bytes, &total))
      throw CheckpointError("{}: files[{}] has a size beyond 2^63", file, i);
  }
}

void check_ties(const Manifest& manifest, const std::string& file) {
  const auto key = [](const TensorInfo& t) { return std::pair(t.name, t.kind); };
  for (size_t i = 1; i < manifest.tensors.size(); ++i) {
    if (key(manifest.tensors[i]) <= key(manifest.tensors[i - 1])) {
      throw CheckpointError("{}: tensor {} ({}) occurs twice or out of order", file, manifest.tensors[i].name,
                            tensor_kind_name(manifest.tensors[i].kind));
    }
  }
  for (const TensorInfo& tensor : manifest.tensors) {
    if (tensor.tied_to.empty()) continue;
    if (!name_problem(tensor.tied_to).empty()) {
      throw CheckpointError("{}: tensor {} is tied to what is no name", file, tensor.name);
    }
    const auto target = std::lower_bound(
        manifest.tensors.begin(), manifest.tensors.end(), std::pair(tensor.tied_to, tensor.kind),
        [&](const TensorInfo& t, const std::pair<std::string, TensorKind>& wanted) {
          return key(t) < wanted;
        });
    if (target == manifest.tensors.end() || key(*target) != std::pair(tensor.tied_to, tensor.kind) ||
        !target->tied_to.empty() || target->global_shape != tensor.global_shape ||
        target->dtype != tensor.dtype) {
      throw CheckpointError("{}: tensor {} is tied to {}, which is no stored tensor of its shape and dtype",
                            file, tensor.name, tensor.tied_to);
    }
  }
}

}  // namespace

void check_manifest(const Manifest& manifest, const std::string& file) {
  check_files(manifest, file);
  check_ties(manifest, file);
}

bool may_be_listed(const FileRef& ref, size_t count) {
  return count <= kMaxFiles && ref.path.size() >= std::string_view(kBuildFile).size() &&
         ref.path.size() <= data_file(0).size();
}

}  // namespace transxssm
