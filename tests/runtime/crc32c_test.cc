// CRC-32C against Boost.CRC, an implementation of its own.
#include "runtime/crc32c.h"

#include <gtest/gtest.h>

#include <boost/crc.hpp>
#include <vector>

#include "runtime/rng.h"

namespace transxssm {
namespace {

using BoostCrc32c = boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true>;

uint32_t oracle(std::span<const std::byte> bytes) {
  BoostCrc32c crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

std::vector<std::byte> random_bytes(size_t size) {
  const Rng rng(7, "crc32c_test");
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>(rng.words(i / 16)[i % 4] >> (i / 4 % 4 * 8));
  return bytes;
}

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);            // the catalogued check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720 B.4
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
}

TEST(Crc32c, EqualsBoostForEverySizeAndAlignment) {
  const std::vector<std::byte> bytes = random_bytes(200'000);
  // Around the sizes of a word, of three lanes of 8192, and of several such blocks.
  for (size_t size :
       {0, 1, 3, 7, 8, 9, 15, 63, 255, 8192, 24575, 24576, 24577, 24584, 49152, 100'003, 199'990}) {
    for (size_t begin : {0, 1, 5, 8}) {
      const auto part = std::span(bytes).subspan(begin, size);
      const uint32_t expected = oracle(part);
      EXPECT_EQ(crc32c(part), expected) << size << " bytes from " << begin;
      EXPECT_EQ(crc32c_portable(part), expected) << size << " bytes from " << begin;
    }
  }
}

TEST(Crc32c, ExtendsAndCombines) {
  const std::vector<std::byte> bytes = random_bytes(100'000);
  const uint32_t whole = oracle(bytes);
  for (size_t cut : {0, 1, 17, 30'000, 75'001, 99'999, 100'000}) {
    const auto a = std::span(bytes).first(cut);
    const auto b = std::span(bytes).subspan(cut);
    EXPECT_EQ(crc32c(b, crc32c(a)), whole) << cut;
    EXPECT_EQ(crc32c_portable(b, crc32c_portable(a)), whole) << cut;
    EXPECT_EQ(crc32c_combine(crc32c(a), crc32c(b), b.size()), whole) << cut;
  }
}

TEST(Crc32c, CombineOverMoreBytesThanMemory) {
  // Appending 2^40 zero bytes in one step equals two steps of half of it.
  const uint32_t a = 0x12345678;
  const uint64_t half = uint64_t{1} << 39;
  EXPECT_EQ(crc32c_combine(a, 0, 2 * half), crc32c_combine(crc32c_combine(a, 0, half), 0, half));
}

}  // namespace
}  // namespace transxssm
