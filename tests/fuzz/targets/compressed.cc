// gzip and zstd, told apart by the first byte; the first 64 KiB of content, however the file is read.
#include "runtime/data/input_file.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {
namespace {

constexpr size_t kEnough = 1 << 16;

std::string content(const std::string& path, size_t step) {
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
  // Damage that lies beyond what is read may be met or not.
  const auto is_cut = [](const auto& text) { return text && text->size() == kEnough; };
  const bool one_is_cut = (is_cut(large) && !small) || (is_cut(small) && !large);
  fuzz::expect(large == small || one_is_cut, "content depends on how much is read at once");
}

}  // namespace transxssm
