// Folders of weights in the layout of Hugging Face: model.safetensors, or shards named by
// model.safetensors.index.json. Names, shapes and bytes only; what they mean is model/hugging_face.h.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "runtime/file_system.h"

namespace transxssm {

struct NamedShape {
  std::string name;
  Shape shape;
};

// Weights to read. All files are opened and their headers checked at once; data is read tensor by tensor.
class WeightFolder {
 public:
  using Ignored = std::function<bool(const std::string&)>;

  // Throws CheckpointError naming the file for whatever is missing, truncated or contradictory: a shard that
  // the index names and the folder lacks, a tensor that a shard lacks or that two shards hold. Tensors of
  // which ignored(name) are as if they were not there.
  WeightFolder(FileSystem& files, const std::string& folder, const Ignored& ignored = {});

  // Throws one CheckpointError that lists tensors that are missing, of another shape, of a dtype that is not
  // F32, BF16, F16 or F64, or not expected.
  void check(std::span<const NamedShape> expected) const;

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const std::string& file_of(const std::string& name) const;  // for messages; of a tensor that is there

  std::vector<NamedShape> tensors() const;  // sorted by name

  // All elements as f32: exact, but for F64, which is rounded to nearest even. Throws CheckpointError naming
  // the tensor and the element where one is not finite or beyond f32.
  std::vector<float> read(const std::string& name) const;

 private:
  struct File {
    std::string path;
    std::unique_ptr<ReadableFile> file;
    int64_t header_bytes = 0;
  };
  struct Place {
    size_t file = 0;
    SafetensorsEntry entry;
  };
  void add_file(FileSystem& files, const std::string& folder, const std::string& name,
                const Ignored& ignored);
  std::string directory_name() const;  // for messages

  std::vector<File> files_;
  std::map<std::string, Place> tensors_;
};

// One tensor to write: `values` gives its elements when its turn comes, so that a whole model need not fit.
struct WeightSource {
  std::string name;
  Shape shape;
  std::function<std::vector<float>()> values;
};

struct FolderText {
  std::string name;  // "config.json"
  std::string text;
};

inline constexpr int64_t kMaxWeightShardBytes = 5'000'000'000;

// Writes a new folder with these texts and weights in `dtype` (f32, or bf16 rounded to nearest even): one
// model.safetensors, or shards of at most `max_shard_bytes` of data (a larger tensor is a shard of its own)
// with an index. Everything goes to a temporary directory beside `folder`, is synced and appears by one
// rename; what fails leaves nothing. Throws UsageError where `folder` exists, CheckpointSaveError where the
// system refuses.
void write_weight_folder(FileSystem& files, const std::string& folder, std::span<const FolderText> texts,
                         std::span<const WeightSource> weights, DType dtype,
                         int64_t max_shard_bytes = kMaxWeightShardBytes);

// `path` with symbolic links followed, which FileSystem::open does not: the model cache of Hugging Face is
// made of links.
std::string followed(const std::string& path);

// Exact conversions of the dtypes that only files have, and rounding to nearest even.
float float_from_bf16(uint16_t bits);
float float_from_f16(uint16_t bits);
uint16_t bf16_from_float(float value);  // NaN stays NaN

}  // namespace transxssm
