#include "runtime/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace transxssm {
namespace {

// Polynomials over GF(2) modulo P live in 32 bits, reflected: bit 31 is x^0.
constexpr uint32_t kPolynomial = 0x82F63B78;

constexpr uint32_t multiply_by_x(uint32_t a) {
  return (a >> 1) ^ ((a & 1) ? kPolynomial : 0);
}

constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = multiply_by_x(b);
  }
  return product;
}

// x^(8 * bytes): multiplying by it appends that many zero bytes.
constexpr uint32_t zeros_operator(uint64_t bytes) {
  uint32_t result = 0x80000000;  // x^0
  uint32_t square = 0x00800000;  // x^8
  for (; bytes != 0; bytes >>= 1) {
    if (bytes & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

using Table = std::array<uint32_t, 256>;

// tables[0][b]: the checksum register after byte b; tables[k][b]: after k more zero bytes.
constexpr std::array<Table, 8> make_tables() {
  std::array<Table, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = multiply_by_x(crc);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) {
      tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xFF];
    }
  }
  return tables;
}

constexpr std::array<Table, 8> kTables = make_tables();

#if defined(__x86_64__)
constexpr size_t kLane = 8192;

// The same product as multiply(crc, zeros_operator(kLane)), one table a byte of crc.
constexpr std::array<Table, 4> make_lane_shift() {
  std::array<Table, 4> tables{};
  const uint32_t shift = zeros_operator(kLane);
  for (size_t k = 0; k < 4; ++k) {
    // Bits add, so the 256 entries follow from eight products.
    for (uint32_t bit = 0; bit < 8; ++bit) tables[k][1u << bit] = multiply(1u << (8 * k + bit), shift);
    for (uint32_t b = 1; b < 256; ++b) tables[k][b] = tables[k][b & (b - 1)] ^ tables[k][b & (~b + 1)];
  }
  return tables;
}

constexpr std::array<Table, 4> kLaneShift = make_lane_shift();

uint64_t shift_lane(uint64_t crc) {
  return kLaneShift[0][crc & 0xFF] ^ kLaneShift[1][(crc >> 8) & 0xFF] ^ kLaneShift[2][(crc >> 16) & 0xFF] ^
         kLaneShift[3][(crc >> 24) & 0xFF];
}

uint64_t load64(const unsigned char* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// The instruction has a latency of three cycles and a throughput of one: three independent lanes keep it
// busy.
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const unsigned char* p, size_t size, uint32_t start) {
  uint64_t crc = ~start;
  while (size >= 3 * kLane) {
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      crc = _mm_crc32_u64(crc, load64(p + i));
      b = _mm_crc32_u64(b, load64(p + kLane + i));
      c = _mm_crc32_u64(c, load64(p + 2 * kLane + i));
    }
    crc = shift_lane(shift_lane(crc) ^ b) ^ c;
    p += 3 * kLane;
    size -= 3 * kLane;
  }
  for (; size >= 8; p += 8, size -= 8) crc = _mm_crc32_u64(crc, load64(p));
  uint32_t tail = static_cast<uint32_t>(crc);
  for (; size > 0; ++p, --size) tail = _mm_crc32_u8(tail, *p);
  return ~tail;
}
#endif

}  // namespace

uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t crc) {
  const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
  size_t size = bytes.size();
  crc = ~crc;
  for (; size >= 8; p += 8, size -= 8) {
    const uint32_t low =
        crc ^ (uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24);
    crc = kTables[7][low & 0xFF] ^ kTables[6][(low >> 8) & 0xFF] ^ kTables[5][(low >> 16) & 0xFF] ^
          kTables[4][low >> 24] ^ kTables[3][p[4]] ^ kTables[2][p[5]] ^ kTables[1][p[6]] ^ kTables[0][p[7]];
  }
  for (; size > 0; ++p, --size) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xFF];
  return ~crc;
}

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) {
    return crc32c_sse42(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), crc);
  }
#endif
  return crc32c_portable(bytes, crc);
}

uint32_t crc32c(std::string_view text, uint32_t crc) {
  return crc32c(std::as_bytes(std::span(text.data(), text.size())), crc);
}

uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b) {
  return multiply(crc_a, zeros_operator(bytes_b)) ^ crc_b;
}

}  // namespace transxssm
