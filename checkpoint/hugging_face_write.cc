// Writing a folder of weights: a temporary directory beside it, synced, then one rename.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/hugging_face.h"
#include "checkpoint/layout.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

constexpr int64_t kSlackBytes = int64_t{1} << 20;  // for texts and headers

// The weights of one file.
struct Shard {
  std::span<const WeightSource> weights;
  int64_t bytes = 0;
};

std::vector<Shard> cut_shards(std::span<const WeightSource> weights, DType dtype, int64_t max_bytes) {
  std::vector<Shard> shards;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t size = weights[i].shape.num_elements() * dtype_bytes(dtype);
    if (i > begin && bytes + size > max_bytes) {
      shards.push_back({weights.subspan(begin, i - begin), bytes});
      begin = i;
      bytes = 0;
    }
    bytes += size;
  }
  shards.push_back({weights.subspan(begin), bytes});
  return shards;
}

std::string shard_name(size_t shard, size_t count) {
  return count == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, count);
}

void write_shard(FileSystem& files, const std::string& path, const Shard& shard, DType dtype) {
  std::vector<SafetensorsEntry> entries;
  int64_t end = 0;
  for (const WeightSource& weight : shard.weights) {
    const int64_t size = weight.shape.num_elements() * dtype_bytes(dtype);
    entries.push_back({weight.name, dtype, weight.shape, end, end + size});
    end += size;
  }
  const auto file = files.create(path);
  file->write(std::as_bytes(std::span<const char>(encode_safetensors_header(entries, 8))));
  for (const WeightSource& weight : shard.weights) {
    const std::vector<float> values = weight.values();
    TRANSXSSM_CHECK(static_cast<int64_t>(values.size()) == weight.shape.num_elements(), "{} has {} elements",
                    weight.name, values.size());
    if (dtype == DType::f32) {
      file->write(std::as_bytes(std::span(values)));
    } else {
      std::vector<uint16_t> bits(values.size());
      std::transform(values.begin(), values.end(), bits.begin(), bf16_from_float);
      file->write(std::as_bytes(std::span(bits)));
    }
  }
  file->sync();
  file->close();
}

std::string index_text(std::span<const Shard> shards) {
  nlohmann::ordered_json index;
  int64_t bytes = 0;
  nlohmann::json map = nlohmann::json::object();
  for (size_t s = 0; s < shards.size(); ++s) {
    bytes += shards[s].bytes;
    for (const WeightSource& weight : shards[s].weights) map[weight.name] = shard_name(s, shards.size());
  }
  index["metadata"] = {{"total_size", bytes}};
  index["weight_map"] = map;
  return index.dump(2) + "\n";
}

void write_files(FileSystem& files, const std::string& directory, std::span<const FolderText> texts,
                 std::span<const Shard> shards, DType dtype) {
  for (size_t s = 0; s < shards.size(); ++s)
    write_shard(files, directory + "/" + shard_name(s, shards.size()), shards[s], dtype);
  if (shards.size() > 1)
    write_new_file(files, directory + "/model.safetensors.index.json", index_text(shards));
  for (const FolderText& text : texts) write_new_file(files, directory + "/" + text.name, text.text);
  files.sync_directory(directory);
}

}  // namespace

void write_weight_folder(FileSystem& files, const std::string& folder, std::span<const FolderText> texts,
                         std::span<const WeightSource> weights, DType dtype, int64_t max_shard_bytes) {
  TRANSXSSM_CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights in {}", dtype_name(dtype));
  const std::vector<Shard> shards = cut_shards(weights, dtype, max_shard_bytes);
  int64_t needed = kSlackBytes;
  for (const Shard& shard : shards) needed += shard.bytes;
  const std::string parent = directory_of(folder);
  const std::string temporary = fmt::format("{}/.tmp-{}-{}", parent, name_of(folder), make_uuid());
  std::string made;  // by this call, and to be removed where it fails
  try {
    if (files.exists(folder)) throw UsageError("{}: exists already; give the name of a new folder", folder);
    create_directories(files, parent);
    if (const int64_t free = files.free_bytes(parent); free < needed)
      throw CheckpointSaveError("{}: needs {} bytes, {} bytes are free", parent, needed, free);
    files.create_directory(temporary, 0700);
    made = temporary;
    write_files(files, temporary, texts, shards, dtype);
    files.set_default_mode(temporary);
    files.rename(temporary, folder);
    made = folder;
    files.sync_directory(parent);
  } catch (const std::exception& error) {
    const std::string left = made.empty() ? "" : problem_of([&] { remove_all(files, made); });
    if (!left.empty()) log_warning("what was written could not be removed: {}", left);
    if (dynamic_cast<const std::system_error*>(&error) != nullptr)
      throw CheckpointSaveError("{}: cannot be written: {}", folder, error.what());
    throw;
  }
}

}  // namespace transxssm
