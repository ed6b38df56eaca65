// Everything of a checkpoint but the tensors' data, checked: what to read where.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "runtime/file_system.h"

namespace transxssm {

// The bytes of its small files, as rank 0 read them and the others receive them.
struct RawCheckpoint {
  std::string manifest;
  std::vector<std::string> texts;   // of run/, in the order of the manifest
  std::vector<std::string> tables;  // one a shard
};

struct Index {
  std::string path;
  Manifest manifest;
  CheckpointText text;
  std::vector<BoxTable> tables;
  struct Source {
    int shard = 0;
    int box = 0;  // in that shard's table
  };
  std::vector<std::vector<Source>> sources;  // of each tensor of the manifest; empty for tied ones
  const FileRef& data_ref(int shard) const { return manifest.files[2 * static_cast<size_t>(shard)]; }
  const StoredBox& stored(Source source) const {
    return tables[static_cast<size_t>(source.shard)].boxes[static_cast<size_t>(source.box)];
  }
  // Index in the manifest, or -1.
  int find(const std::string& name, TensorKind kind) const;
};

// Reads COMMIT, manifest, tables and texts, compares their checksums, and the sizes of all files. Throws
// CheckpointError naming the file.
RawCheckpoint read_raw(FileSystem& files, const std::string& path);
std::string encode_raw(const RawCheckpoint& raw);
RawCheckpoint decode_raw(const std::string& bytes);

// Checks what the files say: among others that the boxes of every tensor are a partition of it. Throws
// CheckpointError.
Index make_index(const RawCheckpoint& raw, const std::string& path);

LoadedCheckpoint summary(const Index& index);

// An open data file. Errors of the system and wrong checksums are CheckpointErrors naming file, tensor and
// bytes.
class DataFile {
 public:
  DataFile(FileSystem& files, const Index& index, int shard);
  // Compares the header with its checksum and with the table.
  void check_header() const;
  // Chunk `chunk` of a box of this file, its checksum compared, in `buffer`, which is kept from call to call.
  std::span<const std::byte> chunk(const StoredBox& box, int64_t chunk, std::vector<std::byte>& buffer) const;

 private:
  const Index& index_;
  int shard_;
  std::unique_ptr<ReadableFile> file_;
};

}  // namespace transxssm
