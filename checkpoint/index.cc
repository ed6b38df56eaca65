#include "checkpoint/index.h"

#include <algorithm>
#include <system_error>

#include "checkpoint/agreement.h"
#include "checkpoint/layout.h"
#include "checkpoint/plan.h"
#include "checkpoint/safetensors.h"
#include "runtime/crc32c.h"

namespace transxssm {
namespace {

// The system's refusals as errors of the checkpoint.
template <class Call>
auto guarded(const std::string& file, Call&& call) {
  try {
    return call();
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: {}", file, error.what());
  }
}

void check_size(const std::string& file, int64_t expected, int64_t actual) {
  if (actual != expected) throw CheckpointError("{}: has {} bytes, expected {}", file, actual, expected);
}

// A whole small file of known size and checksum.
std::string read_checked(FileSystem& files, const std::string& path, const FileRef& ref, int64_t max_bytes) {
  const std::string file = path + "/" + ref.path;
  return guarded(file, [&] {
    const auto opened = files.open(file);
    check_size(file, ref.bytes, opened->size());
    if (ref.bytes > max_bytes) throw CheckpointError("{}: {} bytes are too many", file, ref.bytes);
    std::string text(static_cast<size_t>(ref.bytes), '\0');
    opened->read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
    const uint32_t actual = crc32c(text);
    if (actual != ref.crc) {
      throw CheckpointError("{}: bytes 0 to {}: CRC32C is {:08x}, expected {:08x}", file, ref.bytes, actual,
                            ref.crc);
    }
    return text;
  });
}

FileRef read_commit(FileSystem& files, const std::string& path, std::string& uuid) {
  const std::string file = path + "/" + kCommitFile;
  const std::string text = guarded(file, [&] { return read_file(files, file, 256); });
  const auto commit = parse_commit(text);
  if (!commit) throw CheckpointError("{}: bytes 0 to {}: not a commit mark", file, text.size());
  uuid = commit->uuid;
  return {kManifestFile, commit->manifest_bytes, commit->manifest_crc};
}

void check_tensor(const Index& index, size_t tensor) {
  const TensorInfo& info = index.manifest.tensors[tensor];
  if (!info.tied_to.empty()) return;
  std::vector<Box> boxes;
  for (const Index::Source& source : index.sources[tensor]) boxes.push_back(index.stored(source).box);
  const std::string problem = partition_problem(info.global_shape, boxes);
  if (!problem.empty()) {
    throw CheckpointError("{}/shards: tensor {} ({}): {}", index.path, info.name, tensor_kind_name(info.kind),
                          problem);
  }
}

}  // namespace

int Index::find(const std::string& name, TensorKind kind) const {
  const auto at =
      std::lower_bound(manifest.tensors.begin(), manifest.tensors.end(), std::pair(name, kind),
                       [](const TensorInfo& tensor, const std::pair<std::string, TensorKind>& wanted) {
                         return std::pair(tensor.name, tensor.kind) < wanted;
                       });
  if (at == manifest.tensors.end() || at->name != name || at->kind != kind) return -1;
  return static_cast<int>(at - manifest.tensors.begin());
}

RawCheckpoint read_raw(FileSystem& files, const std::string& path) {
  RawCheckpoint raw;
  std::string uuid;
  raw.manifest = read_checked(files, path, read_commit(files, path, uuid), kMaxManifestBytes);
  const std::string file = path + "/" + kManifestFile;
  const Manifest manifest = decode_manifest(raw.manifest, file);
  if (manifest.save_uuid != uuid)
    throw CheckpointError("{}: belongs to another save than {}", file, kCommitFile);
  const auto step = parse_step_name(name_of(path));
  if (step && *step != manifest.state.step) {
    throw CheckpointError("{}: is of step {}, the directory is named for step {}", file, manifest.state.step,
                          *step);
  }
  const size_t shards = static_cast<size_t>(manifest.num_shards());
  for (size_t s = 0; s < shards; ++s) {
    const std::string data = path + "/" + manifest.files[2 * s].path;
    guarded(data, [&] {
      check_size(data, manifest.files[2 * s].bytes, files.open(data)->size());
      return 0;
    });
    raw.tables.push_back(read_checked(files, path, manifest.files[2 * s + 1], kMaxTableBytes));
  }
  for (size_t i = 2 * shards; i < manifest.files.size(); ++i) {
    raw.texts.push_back(read_checked(files, path, manifest.files[i], kMaxTextBytes));
  }
  return raw;
}

std::string encode_raw(const RawCheckpoint& raw) {
  std::vector<std::string> parts = raw.texts;
  parts.push_back(raw.manifest);
  parts.insert(parts.end(), raw.tables.begin(), raw.tables.end());
  return pack(parts);
}

RawCheckpoint decode_raw(const std::string& bytes) {
  const std::vector<std::string> parts = unpack(bytes);
  TRANSXSSM_CHECK(parts.size() >= 4, "{} parts of a checkpoint", parts.size());
  return {parts[3], {parts.begin(), parts.begin() + 3}, {parts.begin() + 4, parts.end()}};
}

Index make_index(const RawCheckpoint& raw, const std::string& path) {
  Index index;
  index.path = path;
  index.manifest = decode_manifest(raw.manifest, path + "/" + kManifestFile);
  index.text = {index.manifest.model_config, raw.texts.at(0), raw.texts.at(1), raw.texts.at(2)};
  index.sources.resize(index.manifest.tensors.size());
  for (int s = 0; s < index.manifest.num_shards(); ++s) {
    index.tables.push_back(decode_table(raw.tables.at(static_cast<size_t>(s)), path + "/" + table_file(s),
                                        index.manifest, index.data_ref(s).bytes));
    const std::vector<StoredBox>& boxes = index.tables.back().boxes;
    for (size_t b = 0; b < boxes.size(); ++b) {
      index.sources[static_cast<size_t>(boxes[b].tensor)].push_back({s, static_cast<int>(b)});
    }
  }
  for (size_t t = 0; t < index.sources.size(); ++t) check_tensor(index, t);
  return index;
}

LoadedCheckpoint summary(const Index& index) {
  LoadedCheckpoint loaded{index.path, index.manifest.state, index.text, index.manifest.tensors, 0, 0};
  for (const FileRef& file : index.manifest.files) loaded.bytes += file.bytes;
  loaded.num_files = static_cast<int>(index.manifest.files.size());
  return loaded;
}

DataFile::DataFile(FileSystem& files, const Index& index, int shard) : index_(index), shard_(shard) {
  const std::string file = index.path + "/" + data_file(shard);
  file_ = guarded(file, [&] { return files.open(file); });
  check_size(file, index.data_ref(shard).bytes, file_->size());
}

void DataFile::check_header() const {
  const std::string file = index_.path + "/" + data_file(shard_);
  const BoxTable& table = index_.tables[static_cast<size_t>(shard_)];
  if (table.header_bytes > kMaxSafetensorsHeader + 8) {
    throw CheckpointError("{}: a header of {} bytes", file, table.header_bytes);
  }
  std::string header(static_cast<size_t>(table.header_bytes), '\0');
  guarded(file, [&] {
    file_->read(0, std::as_writable_bytes(std::span(header.data(), header.size())));
    return 0;
  });
  const uint32_t actual = crc32c(header);
  if (actual != table.header_crc) {
    throw CheckpointError("{}: header, bytes 0 to {}: CRC32C is {:08x}, expected {:08x}", file, header.size(),
                          actual, table.header_crc);
  }
  // The checksum finds accidents; a hostile file may still disagree with its table.
  const std::vector<SafetensorsEntry> entries = parse_safetensors_header(header, file_->size(), file);
  bool same = entries.size() == table.boxes.size();
  for (size_t i = 0; same && i < entries.size(); ++i) {
    const StoredBox& box = table.boxes[i];
    const DType dtype = index_.manifest.tensors[static_cast<size_t>(box.tensor)].dtype;
    same = entries[i].key == box.key && entries[i].dtype == dtype && entries[i].shape == box.box.extent &&
           entries[i].begin + table.header_bytes == box.begin &&
           entries[i].end + table.header_bytes == box.end;
  }
  if (!same) throw CheckpointError("{}: the header does not agree with {}", file, table_file(shard_));
}

std::span<const std::byte> DataFile::chunk(const StoredBox& box, int64_t chunk,
                                           std::vector<std::byte>& buffer) const {
  const std::string file = index_.path + "/" + data_file(shard_);
  const int64_t chunk_bytes = index_.tables[static_cast<size_t>(shard_)].chunk_bytes;
  const int64_t begin = box.begin + chunk * chunk_bytes;
  const int64_t end = std::min(begin + chunk_bytes, box.end);
  const auto size = static_cast<size_t>(end - begin);
  if (buffer.size() < size) buffer.resize(size);
  const std::span<std::byte> bytes = std::span(buffer).first(size);
  guarded(file, [&] {
    file_->read(begin, bytes);
    return 0;
  });
  const uint32_t actual = crc32c(bytes);
  const uint32_t expected = box.chunk_crcs[static_cast<size_t>(chunk)];
  if (actual != expected) {
    const TensorInfo& tensor = index_.manifest.tensors[static_cast<size_t>(box.tensor)];
    throw CheckpointError("{}: tensor {} ({}), bytes {} to {}: CRC32C is {:08x}, expected {:08x}", file,
                          tensor.name, tensor_kind_name(tensor.kind), begin, end, actual, expected);
  }
  return bytes;
}

}  // namespace transxssm
