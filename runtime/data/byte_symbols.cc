#include "runtime/data/byte_symbols.h"

#include "runtime/data/code_point.h"

namespace transxssm {
namespace {

constexpr uint32_t num_symbols = 256 + 68;  // code points used

bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

}  // namespace

const std::array<uint32_t, 256>& byte_symbols() {
  static const std::array<uint32_t, 256> symbols = [] {
    std::array<uint32_t, 256> table{};
    uint32_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) table[byte] = stands_for_itself(byte) ? byte : next++;
    return table;
  }();
  return symbols;
}

std::string bytes_to_symbols(std::string_view bytes) {
  std::string result;
  for (char c : bytes) append_code_point(result, byte_symbols()[static_cast<unsigned char>(c)]);
  return result;
}

std::optional<std::string> symbols_to_bytes(std::string_view symbols) {
  static const std::array<int16_t, num_symbols> bytes = [] {
    std::array<int16_t, num_symbols> table;
    table.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte) table[byte_symbols()[byte]] = static_cast<int16_t>(byte);
    return table;
  }();
  std::string result;
  for (size_t i = 0; i < symbols.size();) {
    const uint32_t code = next_code_point(symbols, i);
    if (code >= num_symbols || bytes[code] < 0) return std::nullopt;
    result.push_back(static_cast<char>(bytes[code]));
  }
  return result;
}

}  // namespace transxssm
