#include "checkpoint/tensor_file.h"

#include <algorithm>
#include <cmath>
#include <system_error>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {

TensorFile::TensorFile(FileSystem& files, const std::string& path) : path_(path) {
  try {
    file_ = files.open(path);
    const int64_t size = file_->size();
    std::string header(static_cast<size_t>(std::min<int64_t>(8, size)), '\0');
    file_->read(0, std::as_writable_bytes(std::span(header)));
    header_bytes_ = safetensors_header_bytes(header, size, path);
    header.resize(static_cast<size_t>(header_bytes_));
    file_->read(0, std::as_writable_bytes(std::span(header)));
    entries_ = parse_safetensors_header(header, size, path);
  } catch (const std::system_error& error) {
    throw CheckpointError("{} cannot be read: {}", path, error.what());
  }
}

bool TensorFile::has(const std::string& name) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const SafetensorsEntry& entry) { return entry.key == name; });
}

const SafetensorsEntry& TensorFile::find(const std::string& name) const {
  for (const SafetensorsEntry& entry : entries_)
    if (entry.key == name) return entry;
  throw CheckpointError("{}: tensor {} is missing", path_, printable(name));
}

void TensorFile::check_shape(const SafetensorsEntry& entry, const Shape& shape) const {
  if (!(entry.shape == shape))
    throw CheckpointError("{}: tensor {} has shape {} instead of {}", path_, printable(entry.key),
                          entry.shape.to_string(), shape.to_string());
}

template <class T>
std::vector<T> TensorFile::read(const SafetensorsEntry& entry) const {
  std::vector<T> elements(static_cast<size_t>(entry.shape.num_elements()));
  try {
    file_->read(header_bytes_ + entry.begin, std::as_writable_bytes(std::span(elements)));
  } catch (const std::system_error& error) {
    throw CheckpointError("{}: tensor {} cannot be read: {}", path_, printable(entry.key), error.what());
  }
  return elements;
}

std::vector<double> TensorFile::reals(const std::string& name, const Shape& shape) const {
  const SafetensorsEntry& entry = find(name);
  check_shape(entry, shape);
  std::vector<double> elements;
  if (entry.dtype == DType::f64) {
    elements = read<double>(entry);
  } else if (entry.dtype == DType::f32) {
    const std::vector<float> narrow = read<float>(entry);
    elements.assign(narrow.begin(), narrow.end());
  } else {
    throw CheckpointError("{}: tensor {} is {} instead of f32 or f64", path_, printable(name),
                          dtype_name(entry.dtype));
  }
  for (size_t i = 0; i < elements.size(); ++i)
    if (!std::isfinite(elements[i]))
      throw CheckpointError("{}: element {} of tensor {} is {}", path_, i, printable(name), elements[i]);
  return elements;
}

std::vector<int64_t> TensorFile::integers(const std::string& name, const Shape& shape) const {
  const SafetensorsEntry& entry = find(name);
  check_shape(entry, shape);
  if (entry.dtype == DType::i64) return read<int64_t>(entry);
  if (entry.dtype != DType::i32)
    throw CheckpointError("{}: tensor {} is {} instead of i64 or i32", path_, printable(name),
                          dtype_name(entry.dtype));
  const std::vector<int32_t> narrow = read<int32_t>(entry);
  return {narrow.begin(), narrow.end()};
}

void write_tensor_file(FileSystem& files, const std::string& path, std::span<const NamedTensor> tensors) {
  std::vector<SafetensorsEntry> entries;
  int64_t end = 0;
  for (const NamedTensor& named : tensors) {
    const int64_t begin = end;
    end += named.tensor.num_bytes();
    entries.push_back({named.name, named.tensor.dtype(), named.tensor.shape(), begin, end});
  }
  std::string text = encode_safetensors_header(entries, 64);
  text.reserve(text.size() + static_cast<size_t>(end));
  for (const NamedTensor& named : tensors)
    text.append(static_cast<const char*>(named.tensor.raw()), static_cast<size_t>(named.tensor.num_bytes()));
  try {
    write_file_atomically(files, path, text);
  } catch (const std::system_error& error) {
    throw OutputError("{} cannot be written: {}", path, error.what());
  }
}

}  // namespace transxssm
