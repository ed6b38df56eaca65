// A safetensors file: its header, then its tensors as TensorFile reads them.
#include "checkpoint/safetensors.h"

#include "checkpoint/tensor_file.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

bool same_entry(const SafetensorsEntry& a, const SafetensorsEntry& b) {
  return a.key == b.key && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end;
}

void check_header(std::string_view input) {
  const auto size = static_cast<int64_t>(input.size());
  const auto entries = fuzz::attempt([&] {
    const int64_t header = safetensors_header_bytes(input.substr(0, 8), size, "file");
    return parse_safetensors_header(input.substr(0, static_cast<size_t>(header)), size, "file");
  });
  if (!entries) return;
  const std::string again = encode_safetensors_header(*entries, 8);
  const int64_t data = entries->empty() ? 0 : entries->back().end;
  const auto read = parse_safetensors_header(again, static_cast<int64_t>(again.size()) + data, "again");
  fuzz::expect(std::equal(read.begin(), read.end(), entries->begin(), entries->end(), same_entry),
               "a header written again says something else");
}

}  // namespace

FUZZ_TARGET(safetensors, 2048) {
  check_header(input);
  fuzz::attempt([&] {
    const auto header =
        safetensors_header_bytes(input.substr(0, 8), static_cast<int64_t>(input.size()), "half");
    parse_safetensors_header(input.substr(0, static_cast<size_t>(header)), static_cast<int64_t>(input.size()),
                             "half", true);
  });
  fuzz::MemoryFiles files;
  files.contents["file"] = input;
  const auto file = fuzz::attempt([&] { return TensorFile(files, "file"); });
  if (!file) return;
  for (const SafetensorsEntry& entry : file->entries()) {
    fuzz::attempt([&] { file->reals(entry.key, entry.shape); });
    fuzz::attempt([&] { file->integers(entry.key, entry.shape); });
  }
}

}  // namespace transxssm
