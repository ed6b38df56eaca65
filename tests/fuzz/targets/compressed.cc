// gzip and zstd, told apart by the first byte; the first 64 KiB of content, however the file is read.
#include "runtime/data/input_file.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

std::string content(const std::string& path, size_t step) {
  constexpr size_t kEnough = 1 << 16;
  const auto file = open_input(path, step);
  std::string text;
  for (std::string buffer(step, '\0'); text.size() < kEnough;) {
    const size_t count = file->read(buffer.data(), step);
    fuzz::expect(count <= step, "more was read than asked for");
    if (count == 0) return text;
    text.append(buffer, 0, count);
  }
  text.resize(kEnough);
  return text;
}

}  // namespace

FUZZ_TARGET(compressed, 2048) {
  fuzz::Bytes bytes(input);
  const std::string name = bytes.byte() % 2 != 0 ? "x.zst" : "x.gz";
  const std::string path = fuzz::real_file(name, bytes.rest());
  const auto large = fuzz::attempt([&] { return content(path, 1 << 14); });
  const auto small = fuzz::attempt([&] { return content(path, 100); });
  fuzz::expect(large == small, "content depends on how much is read at once");
}

}  // namespace transxssm
