// A safetensors file of named figures, read whole and written whole: reference values, not weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "runtime/file_system.h"

namespace transxssm {

class TensorFile {
 public:
  // Opens the file and checks its header. Throws CheckpointError naming the file.
  TensorFile(FileSystem& files, const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  bool has(const std::string& name) const;
  // Throws CheckpointError where there is no such tensor; likewise below.
  const Shape& shape(const std::string& name) const { return find(name).shape; }
  // Elements of an F32 or F64 tensor of this shape, all finite.
  std::vector<double> reals(const std::string& name, const Shape& shape) const;
  // Elements of an I32 or I64 tensor of this shape.
  std::vector<int64_t> integers(const std::string& name, const Shape& shape) const;

 private:
  const SafetensorsEntry& find(const std::string& name) const;
  // Raw elements, as T.
  template <class T>
  std::vector<T> read(const SafetensorsEntry& entry) const;
  void check_shape(const SafetensorsEntry& entry, const Shape& shape) const;

  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  int64_t header_bytes_ = 0;
  std::vector<SafetensorsEntry> entries_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;  // contiguous
};

// Writes or replaces the file as a whole. Throws OutputError where the system refuses.
void write_tensor_file(FileSystem& files, const std::string& path, std::span<const NamedTensor> tensors);

}  // namespace transxssm
