#include "checkpoint/safetensors.h"

#include <algorithm>
#include <optional>

#include "checkpoint/plan.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace transxssm {
namespace {

using nlohmann::json;

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxKeyBytes = 1024;

struct TypeName {
  DType dtype;
  const char* name;
};
constexpr TypeName kTypeNames[] = {{DType::f32, "F32"}, {DType::f64, "F64"}, {DType::bf16, "BF16"},
                                   {DType::i32, "I32"}, {DType::i64, "I64"}, {DType::u8, "U8"}};

const char* type_name(DType dtype) {
  for (const TypeName& type : kTypeNames) {
    if (type.dtype == dtype) return type.name;
  }
  throw InternalError("safetensors has no name for dtype {}", dtype_name(dtype));
}

std::optional<DType> parse_type(const std::string& name) {
  for (const TypeName& type : kTypeNames) {
    if (name == type.name) return type.dtype;
  }
  return std::nullopt;
}

// Of the format but not of this program, which reads some of them from others' files.
struct ForeignType {
  std::string_view name;
  int64_t bytes;
};
constexpr ForeignType kForeignTypes[] = {{"F16", 2}, {"BOOL", 1},    {"I8", 1},     {"I16", 2},
                                         {"U16", 2}, {"U32", 4},     {"U64", 8},    {"F8_E4M3", 1},
                                         {"C64", 8}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};

int64_t foreign_bytes(std::string_view name) {
  for (const ForeignType& type : kForeignTypes)
    if (name == type.name) return type.bytes;
  return 0;
}

// -1 where the value is not a whole number in [0, 2^63).
int64_t as_size(const json& value) {
  return json_integer(value, int64_t{0}).value_or(-1);
}

// Empty, or what is wrong with the entry.
std::string read_entry(const json& value, SafetensorsEntry& entry, bool with_foreign) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    return "must have dtype, shape and data_offsets";
  }
  const std::string type = json_string(value, "dtype").value_or("");
  const auto dtype = parse_type(type);
  if (!dtype && with_foreign) {
    for (const ForeignType& foreign : kForeignTypes)
      if (type == foreign.name) entry.foreign = foreign.name;
  }
  if (!dtype && entry.foreign.empty())
    return fmt::format("has dtype {}, which this program does not read", printable_json(value["dtype"]));
  entry.dtype = dtype.value_or(DType::u8);
  const int64_t element_bytes = dtype ? dtype_bytes(*dtype) : foreign_bytes(entry.foreign);
  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > static_cast<size_t>(kMaxRank)) {
    return fmt::format("must have a shape of at most {} dims", kMaxRank);
  }
  for (const json& dim : shape) {
    const int64_t size = as_size(dim);
    if (size < 0) return fmt::format("has a size that is not a whole number: {}", printable_json(dim));
    entry.shape.append(size);
  }
  const json& offsets = value["data_offsets"];
  const bool pair = offsets.is_array() && offsets.size() == 2;
  entry.begin = pair ? as_size(offsets[0]) : -1;
  entry.end = pair ? as_size(offsets[1]) : -1;
  if (entry.begin < 0 || entry.end < entry.begin) return "must have data_offsets [begin, end]";
  const auto volume = checked_volume(entry.shape);
  if (!volume) return fmt::format("has a shape that is too large: {}", entry.shape.to_string());
  if (*volume * element_bytes != entry.end - entry.begin) {
    return fmt::format("has {} bytes, but shape {} of {} needs {}", entry.end - entry.begin,
                       entry.shape.to_string(), dtype_of(entry), *volume * element_bytes);
  }
  return "";
}

void check_metadata(const json& metadata, const std::string& file) {
  bool strings = metadata.is_object();
  for (const json& value : metadata) strings = strings && value.is_string();
  if (!strings) throw CheckpointError("{}: __metadata__ of the header must map strings to strings", file);
}

}  // namespace

std::string_view dtype_of(const SafetensorsEntry& entry) {
  return entry.foreign.empty() ? type_name(entry.dtype) : entry.foreign;
}

std::string encode_safetensors_header(std::span<const SafetensorsEntry> entries, int64_t alignment) {
  nlohmann::ordered_json header;
  // transformers refuses a file whose metadata does not name the framework.
  header["__metadata__"] = {{"format", "pt"}};
  for (const SafetensorsEntry& entry : entries) {
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    for (int d = 0; d < entry.shape.rank(); ++d) shape.push_back(entry.shape[d]);
    header[entry.key] = {
        {"dtype", type_name(entry.dtype)}, {"shape", shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  const std::string text = header.dump();
  const auto aligned = static_cast<uint64_t>(alignment);
  const uint64_t total = (8 + text.size() + aligned - 1) / aligned * aligned;
  TRANSXSSM_CHECK(total - 8 <= static_cast<uint64_t>(kMaxSafetensorsHeader),
                  "a safetensors header of {} bytes", total);
  std::string encoded;
  encoded.reserve(total);
  for (int i = 0; i < 8; ++i) encoded.push_back(static_cast<char>((total - 8) >> (8 * i)));
  encoded += text;
  encoded.resize(total, ' ');
  return encoded;
}

int64_t safetensors_header_bytes(std::string_view first, int64_t file_bytes, const std::string& file) {
  if (first.size() < 8) throw CheckpointError("{}: {} bytes are no safetensors file", file, first.size());
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) length |= uint64_t{static_cast<unsigned char>(first[i])} << (8 * i);
  if (length < 2 || length > static_cast<uint64_t>(kMaxSafetensorsHeader) ||
      static_cast<int64_t>(length) > file_bytes - 8) {
    throw CheckpointError("{}: header length {} is not between 2 and {}", file, length,
                          std::min(kMaxSafetensorsHeader, file_bytes - 8));
  }
  return static_cast<int64_t>(length) + 8;
}

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header, int64_t file_bytes,
                                                       const std::string& file, bool with_foreign) {
  const int64_t header_bytes = safetensors_header_bytes(header, file_bytes, file);
  if (static_cast<int64_t>(header.size()) != header_bytes) {
    throw CheckpointError("{}: the header has {} bytes, not {}", file, header_bytes, header.size());
  }
  const std::string_view text = header.substr(8);
  if (text.front() != '{') throw CheckpointError("{}: the header does not start with {{", file);
  // The shortest entries, all dims and offsets of one digit, have a value in four bytes.
  const JsonLimits limits{.max_bytes = kMaxSafetensorsHeader,
                          .max_depth = 3,
                          .max_values = 16 + static_cast<int64_t>(text.size() / 4)};
  const json document = parse_json<CheckpointError>(text, file + ": the header", limits);
  std::vector<SafetensorsEntry> entries;
  for (const auto& [key, value] : document.items()) {
    if (key == "__metadata__") {
      check_metadata(value, file);
      continue;
    }
    if (key.size() > kMaxKeyBytes)
      throw CheckpointError("{}: a key of {} bytes in the header", file, key.size());
    if (entries.size() == kMaxTensors) throw CheckpointError("{}: more than {} tensors", file, kMaxTensors);
    SafetensorsEntry entry;
    entry.key = key;
    const std::string problem = read_entry(value, entry, with_foreign);
    if (!problem.empty()) throw CheckpointError("{}: {} {}", file, printable_json(key), problem);
    entries.push_back(std::move(entry));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  int64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != end) {
      throw CheckpointError("{}: {} starts at byte {} of the data, where {} was expected", file,
                            printable_json(entry.key), entry.begin, end);
    }
    end = entry.end;
  }
  if (end != file_bytes - header_bytes) {
    throw CheckpointError("{}: the tensors have {} bytes, the file has {}", file, end,
                          file_bytes - header_bytes);
  }
  return entries;
}

}  // namespace transxssm
