#include "checkpoint/hugging_face.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

#include "checkpoint/agreement.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace transxssm {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 32 << 20;  // the largest known has 9 MB for 92,000 tensors

// Errors of the system as a refusal of the file.
template <class Fn>
auto guarded(const std::string& path, Fn&& fn) {
  try {
    return fn();
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: {}", path, error.what());
  }
}

// Shards lie in the folder itself, and messages name them.
bool is_shard_name(const std::string& name) {
  return name.size() < 256 && name.ends_with(".safetensors") && name.find('/') == std::string::npos &&
         printable(name, name.size()) == name;
}

// Which shard has which tensor.
std::map<std::string, std::string> read_index(FileSystem& files, const std::string& path,
                                              const WeightFolder::Ignored& ignored) {
  const std::string text = guarded(path, [&] { return read_file(files, followed(path), kMaxIndexBytes); });
  const JsonLimits limits{.max_bytes = kMaxIndexBytes, .max_depth = 8, .max_values = 1'000'000};
  const json document = parse_json<CheckpointError>(text, path, limits);
  if (!document.is_object() || !document.contains("weight_map") || !document["weight_map"].is_object())
    throw CheckpointError("{}: has no object weight_map", path);
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : document["weight_map"].items()) {
    if (!shard.is_string() || !is_shard_name(shard.get<std::string>()))
      throw CheckpointError("{}: {} has the shard {}, which is not a file name that ends in .safetensors",
                            path, printable_json(name), printable_json(shard, 80));
    if (!ignored || !ignored(name)) shards[name] = shard.get<std::string>();
  }
  return shards;
}

// A list of tensors, of which a file may have a million.
class Problems {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    if (count_++ < kShown) lines_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  void refuse(const std::string& file) const {
    if (count_ == 0) return;
    throw CheckpointError("{}: {}{}", file, join(lines_, "; "),
                          count_ > kShown ? fmt::format("; and {} more", count_ - kShown) : "");
  }

 private:
  static constexpr size_t kShown = 12;
  size_t count_ = 0;
  std::vector<std::string> lines_;
};

template <class Stored, class Convert>
std::vector<float> converted(int64_t count, const std::function<void(std::span<std::byte>)>& read_bytes,
                             Convert&& convert) {
  std::vector<Stored> stored(static_cast<size_t>(count));
  read_bytes(std::as_writable_bytes(std::span(stored)));
  std::vector<float> values(stored.size());
  std::transform(stored.begin(), stored.end(), values.begin(), convert);
  return values;
}

}  // namespace

std::string followed(const std::string& path) {
  std::error_code error;
  const std::filesystem::path target = std::filesystem::canonical(path, error);
  return error ? path : target.string();
}

float float_from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float float_from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1FU;
  const uint32_t fraction = bits & 0x3FFU;
  // Zero and subnormals: fraction x 2^-24, exact in f32.
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 127 - 15;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

uint16_t bf16_from_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

void WeightFolder::add_file(FileSystem& files, const std::string& folder, const std::string& name,
                            const Ignored& ignored) {
  File file;
  file.path = folder + "/" + name;
  file.file = guarded(file.path, [&] { return files.open(followed(file.path)); });
  std::string header(static_cast<size_t>(std::min<int64_t>(8, file.file->size())), '\0');
  const auto read = [&](size_t from) {
    guarded(file.path, [&] {
      file.file->read(static_cast<int64_t>(from),
                      std::as_writable_bytes(std::span(header.data() + from, header.size() - from)));
      return 0;
    });
  };
  read(0);
  file.header_bytes = safetensors_header_bytes(header, file.file->size(), file.path);
  header.resize(static_cast<size_t>(file.header_bytes));
  read(8);
  for (SafetensorsEntry& entry : parse_safetensors_header(header, file.file->size(), file.path, true)) {
    const std::string key = entry.key;
    if (ignored && ignored(key)) continue;
    const auto [at, is_new] = tensors_.try_emplace(key, Place{files_.size(), std::move(entry)});
    if (!is_new)
      throw CheckpointError("{}: tensor {} is also in {}", file.path, printable_json(key),
                            files_[at->second.file].path);
  }
  files_.push_back(std::move(file));
}

WeightFolder::WeightFolder(FileSystem& files, const std::string& folder, const Ignored& ignored) {
  if (!guarded(folder, [&] { return files.is_directory(followed(folder)); }))
    throw CheckpointError("{}: there is no such folder", folder);
  if (files.exists(folder + "/" + kWeights)) {
    add_file(files, folder, kWeights, ignored);
    return;
  }
  const std::string index = folder + "/" + kIndex;
  if (!files.exists(index))
    throw CheckpointError("{}: has neither {} nor {}; only safetensors files are read", folder, kWeights,
                          kIndex);
  const std::map<std::string, std::string> shards = read_index(files, index, ignored);
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : shards) names.push_back(shard);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.empty()) throw CheckpointError("{}: weight_map names no tensor", index);
  for (const std::string& name : names) add_file(files, folder, name, ignored);

  Problems problems;
  for (const auto& [tensor, shard] : shards) {
    const auto at = tensors_.find(tensor);
    if (at == tensors_.end() || files_[at->second.file].path != folder + "/" + shard)
      problems.add("tensor {} is not in {}", printable_json(tensor), printable(shard));
  }
  for (const auto& [tensor, place] : tensors_) {
    if (!shards.contains(tensor))
      problems.add("tensor {} of {} is not named", printable_json(tensor), files_[place.file].path);
  }
  problems.refuse(index);
}

void WeightFolder::check(std::span<const NamedShape> expected) const {
  Problems problems;
  std::set<std::string> known;
  for (const NamedShape& tensor : expected) {
    known.insert(tensor.name);
    const auto at = tensors_.find(tensor.name);
    if (at == tensors_.end()) {
      problems.add("tensor {} {} is missing", tensor.name, tensor.shape.to_string());
      continue;
    }
    const SafetensorsEntry& entry = at->second.entry;
    if (entry.shape != tensor.shape)
      problems.add("tensor {} has shape {}, config.json needs {}", tensor.name, entry.shape.to_string(),
                   tensor.shape.to_string());
    const std::string_view type = dtype_of(entry);
    if (type != "F32" && type != "BF16" && type != "F16" && type != "F64")
      problems.add("tensor {} is {}; legal dtypes are F32, BF16, F16 and F64", tensor.name, type);
  }
  for (const auto& [name, place] : tensors_) {
    if (!known.contains(name))
      problems.add("tensor {} {} is not part of this model", printable_json(name, 200),
                   place.entry.shape.to_string());
  }
  problems.refuse(directory_name());
}

const std::string& WeightFolder::file_of(const std::string& name) const {
  return files_[tensors_.at(name).file].path;
}

std::string WeightFolder::directory_name() const {
  const std::string& path = files_.front().path;
  return files_.size() == 1 ? path : path.substr(0, path.rfind('/'));
}

std::vector<NamedShape> WeightFolder::tensors() const {
  std::vector<NamedShape> list;
  for (const auto& [name, place] : tensors_) list.push_back({name, place.entry.shape});
  return list;
}

std::vector<float> WeightFolder::read(const std::string& name) const {
  const auto at = tensors_.find(name);
  TRANSXSSM_CHECK(at != tensors_.end(), "tensor {}", name);
  const SafetensorsEntry& entry = at->second.entry;
  const File& file = files_[at->second.file];
  const int64_t count = entry.shape.num_elements(), begin = file.header_bytes + entry.begin;
  const auto read_bytes = [&](std::span<std::byte> bytes) {
    guarded(file.path, [&] {
      file.file->read(begin, bytes);
      return 0;
    });
  };
  const std::string_view type = dtype_of(entry);
  std::vector<float> values;
  if (type == "F32") {
    values.resize(static_cast<size_t>(count));
    read_bytes(std::as_writable_bytes(std::span(values)));
  } else if (type == "F64") {
    values = converted<double>(count, read_bytes, [](double value) { return static_cast<float>(value); });
  } else {
    values = converted<uint16_t>(count, read_bytes, type == "F16" ? float_from_f16 : float_from_bf16);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      throw CheckpointError("{}: tensor {} {} is {} at element {}", file.path, printable(name),
                            entry.shape.to_string(), values[i], i);
  }
  return values;
}

}  // namespace transxssm
