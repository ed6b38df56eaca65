#include "checkpoint/shard_writer.h"

#include <algorithm>

#include "checkpoint/chunk_source.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "runtime/crc32c.h"

namespace transxssm {
namespace {

std::vector<OwnedBox> in_file_order(std::span<const OwnedBox> boxes) {
  std::vector<OwnedBox> order(boxes.begin(), boxes.end());
  // Wide elements first keeps every tensor aligned to its elements without holes.
  std::stable_sort(order.begin(), order.end(), [](const OwnedBox& a, const OwnedBox& b) {
    return dtype_bytes(a.tensor->data.dtype()) > dtype_bytes(b.tensor->data.dtype());
  });
  return order;
}

std::vector<SafetensorsEntry> header_entries(std::span<const OwnedBox> boxes) {
  std::vector<SafetensorsEntry> entries;
  int64_t end = 0;
  for (size_t i = 0; i < boxes.size(); ++i) {
    const CheckpointTensor& tensor = *boxes[i].tensor;
    const std::string key = fmt::format("{}/{}/{}", tensor_kind_name(tensor.kind), tensor.name, i);
    entries.push_back({key, tensor.data.dtype(), tensor.extent, end, end + tensor.data.num_bytes()});
    end += tensor.data.num_bytes();
  }
  return entries;
}

}  // namespace

int64_t data_file_bytes(std::span<const OwnedBox> boxes) {
  const std::vector<SafetensorsEntry> entries = header_entries(in_file_order(boxes));
  const auto header = static_cast<int64_t>(encode_safetensors_header(entries, kDataAlignment).size());
  return header + (entries.empty() ? 0 : entries.back().end);
}

Written write_shard(FileSystem& files, const std::string& directory, int shard,
                    std::span<const OwnedBox> boxes) {
  const std::vector<OwnedBox> order = in_file_order(boxes);
  const std::vector<SafetensorsEntry> entries = header_entries(order);
  const std::string header = encode_safetensors_header(entries, kDataAlignment);
  BoxTable table;
  table.header_bytes = static_cast<int64_t>(header.size());
  table.header_crc = crc32c(header);
  table.chunk_bytes = kChunkBytes;
  Written written;
  written.data = {data_file(shard), table.header_bytes, table.header_crc};

  const auto file = files.create(directory + "/" + written.data.path);
  file->write(std::as_bytes(std::span(header)));
  ChunkSource source(kChunkBytes);
  for (size_t i = 0; i < order.size(); ++i) {
    const CheckpointTensor& tensor = *order[i].tensor;
    StoredBox& box = table.boxes.emplace_back();
    box = {order[i].id,
           {tensor.offset, tensor.extent},
           entries[i].key,
           table.header_bytes + entries[i].begin,
           table.header_bytes + entries[i].end,
           {}};
    source.open(tensor);
    for (auto chunk = source.next(); !chunk.empty(); chunk = source.next()) {
      box.chunk_crcs.push_back(crc32c(chunk));
      written.data.crc = crc32c_combine(written.data.crc, box.chunk_crcs.back(), chunk.size());
      file->write(chunk);
    }
    written.data.bytes = box.end;
  }
  file->sync();
  file->close();

  const std::string encoded = encode_table(table);
  written.table = {table_file(shard), static_cast<int64_t>(encoded.size()), crc32c(encoded)};
  write_new_file(files, directory + "/" + written.table.path, encoded);
  files.sync_directory(directory + "/shards");
  return written;
}

}  // namespace transxssm
