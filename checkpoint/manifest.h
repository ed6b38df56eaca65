// The messages of manifest.proto as plain structs; protobuf stays in manifest.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "parallel/sharding.h"

namespace transxssm {

struct FileRef {
  std::string path;  // relative to the checkpoint
  int64_t bytes = 0;
  uint32_t crc = 0;
};

struct Manifest {
  std::string save_uuid;
  TrainState state;
  std::string model_config;
  std::vector<TensorInfo> tensors;
  std::vector<FileRef> files;  // data and table of shard 0, of shard 1, ..., then the files of run/
  int num_shards() const { return static_cast<int>(files.size() / 2) - 1; }
};

// A box of a tensor in a data file.
struct StoredBox {
  int tensor = 0;  // index in Manifest::tensors
  Box box;
  std::string key;
  int64_t begin = 0;  // bytes of the file
  int64_t end = 0;
  std::vector<uint32_t> chunk_crcs;
};

struct BoxTable {
  int64_t header_bytes = 0;
  uint32_t header_crc = 0;
  int64_t chunk_bytes = 0;
  std::vector<StoredBox> boxes;
};

std::string encode_manifest(const Manifest& manifest);
std::string encode_table(const BoxTable& table);

// From untrusted bytes: versions, names, shapes, counts, ranges and sizes are all checked. Throw
// CheckpointError naming `file` and the field.
Manifest decode_manifest(const std::string& bytes, const std::string& file);
// `data_bytes` is the size of the data file the table describes.
BoxTable decode_table(const std::string& bytes, const std::string& file, const Manifest& manifest,
                      int64_t data_bytes);

// What a rank is about to save.
struct Declaration {
  struct Entry {
    TensorInfo info;
    int64_t owned_elements = 0;
  };
  std::vector<Entry> tensors;
  int64_t bytes = 0;  // of its data file
  std::string problem;
};
std::string encode_declaration(const Declaration& declaration);
Declaration decode_declaration(const std::string& bytes);

// What a rank has written.
struct Written {
  FileRef data;
  FileRef table;
  std::string problem;
};
std::string encode_written(const Written& written);
Written decode_written(const std::string& bytes);

// Why a name cannot be a tensor's; empty where it can.
std::string name_problem(const std::string& name);

}  // namespace transxssm
