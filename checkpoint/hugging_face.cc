#include "checkpoint/hugging_face.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "checkpoint/agreement.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 100'000'000;

// Errors of the system as a refusal of the file.
template <class Fn>
auto guarded(const std::string& path, Fn&& fn) {
  try {
    return fn();
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: {}", path, error.what());
  }
}

// Shards lie in the folder itself.
bool is_shard_name(const std::string& name) {
  return name.size() < 256 && name.ends_with(".safetensors") && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// Which shard has which tensor.
std::map<std::string, std::string> read_index(FileSystem& files, const std::string& path) {
  const std::string text = guarded(path, [&] { return read_file(files, followed(path), kMaxIndexBytes); });
  json document;
  try {
    document = json::parse(text);
  } catch (const json::exception& error) {
    throw CheckpointError("{}: is not JSON: {}", path, error.what());
  }
  if (!document.is_object() || !document.contains("weight_map") || !document["weight_map"].is_object())
    throw CheckpointError("{}: has no object weight_map", path);
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : document["weight_map"].items()) {
    if (!shard.is_string() || !is_shard_name(shard.get<std::string>()))
      throw CheckpointError("{}: {} has the shard {}, which is not a file name that ends in .safetensors",
                            path, json(name).dump(), shard.dump().substr(0, 80));
    shards[name] = shard.get<std::string>();
  }
  return shards;
}

const char* shown_type(const SafetensorsEntry& entry) {
  return entry.half ? "f16" : dtype_name(entry.dtype);
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

void WeightFolder::add_file(FileSystem& files, const std::string& folder, const std::string& name) {
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
    const auto [at, is_new] = tensors_.try_emplace(key, Place{files_.size(), std::move(entry)});
    if (!is_new)
      throw CheckpointError("{}: tensor {} is also in {}", file.path, json(key).dump(),
                            files_[at->second.file].path);
  }
  files_.push_back(std::move(file));
}

WeightFolder::WeightFolder(FileSystem& files, const std::string& folder) {
  if (!guarded(folder, [&] { return files.is_directory(folder); }))
    throw CheckpointError("{}: there is no such folder", folder);
  if (files.exists(folder + "/" + kWeights)) {
    add_file(files, folder, kWeights);
    return;
  }
  const std::string index = folder + "/" + kIndex;
  if (!files.exists(index))
    throw CheckpointError("{}: has neither {} nor {}; only safetensors files are read", folder, kWeights,
                          kIndex);
  const std::map<std::string, std::string> shards = read_index(files, index);
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : shards) names.push_back(shard);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (const std::string& name : names) add_file(files, folder, name);

  std::vector<std::string> problems;
  for (const auto& [tensor, shard] : shards) {
    const auto at = tensors_.find(tensor);
    if (at == tensors_.end() || files_[at->second.file].path != folder + "/" + shard)
      problems.push_back(fmt::format("tensor {} is not in {}", json(tensor).dump(), shard));
  }
  for (const auto& [tensor, place] : tensors_) {
    if (!shards.contains(tensor))
      problems.push_back(
          fmt::format("tensor {} of {} is not named", json(tensor).dump(), files_[place.file].path));
  }
  if (!problems.empty()) throw CheckpointError("{}: {}", index, join(problems, "; "));
}

void WeightFolder::check(std::span<const NamedShape> expected,
                         const std::function<bool(const std::string&)>& ignored) const {
  std::vector<std::string> problems;
  std::map<std::string, bool> known;
  for (const NamedShape& tensor : expected) {
    known[tensor.name] = true;
    const auto at = tensors_.find(tensor.name);
    if (at == tensors_.end()) {
      problems.push_back(fmt::format("tensor {} {} is missing", tensor.name, tensor.shape.to_string()));
      continue;
    }
    const SafetensorsEntry& entry = at->second.entry;
    if (entry.shape != tensor.shape)
      problems.push_back(fmt::format("tensor {} has shape {}, config.json needs {}", tensor.name,
                                     entry.shape.to_string(), tensor.shape.to_string()));
    if (!entry.half && entry.dtype != DType::f32 && entry.dtype != DType::bf16)
      problems.push_back(
          fmt::format("tensor {} is {}; legal dtypes are f32, bf16 and f16", tensor.name, shown_type(entry)));
  }
  for (const auto& [name, place] : tensors_) {
    if (!known.contains(name) && !(ignored && ignored(name)))
      problems.push_back(fmt::format("tensor {} {} is not part of this model", json(name).dump(),
                                     place.entry.shape.to_string()));
  }
  if (!problems.empty()) throw CheckpointError("{}: {}", directory_name(), join(problems, "; "));
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
  std::vector<float> values(static_cast<size_t>(entry.shape.num_elements()));
  const int64_t begin = file.header_bytes + entry.begin;
  const auto read_bytes = [&](std::span<std::byte> bytes) {
    guarded(file.path, [&] {
      file.file->read(begin, bytes);
      return 0;
    });
  };
  if (entry.dtype == DType::f32) {
    read_bytes(std::as_writable_bytes(std::span(values)));
  } else {
    TRANSXSSM_CHECK(entry.dtype == DType::bf16, "tensor {} of {}", name, shown_type(entry));
    std::vector<uint16_t> bits(values.size());
    read_bytes(std::as_writable_bytes(std::span(bits)));
    std::transform(bits.begin(), bits.end(), values.begin(), entry.half ? float_from_f16 : float_from_bf16);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      throw CheckpointError("{}: tensor {} {} is {} at element {}", file.path, name, entry.shape.to_string(),
                            values[i], i);
  }
  return values;
}

}  // namespace transxssm
