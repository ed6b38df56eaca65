#include "runtime/rng.h"

#include <bit>
#include <cmath>
#include <numbers>

namespace transxssm {
namespace {

// FNV-1a, 64 bit: names become stream numbers.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ULL;
  return hash;
}

}  // namespace

Rng::Rng(uint64_t seed, std::string_view name)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, stream_(hash_name(name)) {}

std::array<uint32_t, 4> Rng::words(uint64_t index) const {
  std::array<uint32_t, 4> counter = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                                     static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  std::array<uint32_t, 2> key = key_;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

double Rng::uniform(uint64_t index) const {
  const auto w = words(index);
  return static_cast<double>((uint64_t{w[0]} << 32 | w[1]) >> 11) * 0x1p-53;
}

double Rng::normal(uint64_t index) const {
  const auto w = words(index);
  const double u = (static_cast<double>((uint64_t{w[0]} << 32 | w[1]) >> 11) + 0.5) * 0x1p-53;
  const double v = static_cast<double>((uint64_t{w[2]} << 32 | w[3]) >> 11) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t Rng::below(uint64_t index, uint64_t bound) const {
  const auto w = words(index);
  const uint64_t value = uint64_t{w[0]} << 32 | w[1];
  return static_cast<uint64_t>((static_cast<unsigned __int128>(value) * bound) >> 64);
}

Permutation::Permutation(uint64_t seed, std::string_view name, uint64_t size)
    : rng_(seed, name), size_(size) {
  const int bits = size <= 1 ? 1 : std::bit_width(size - 1);
  half_bits_ = (bits + 1) / 2;
}

uint64_t Permutation::operator()(uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      // One Philox call a round; the round number separates the six functions of the network.
      const auto w = rng_.words(right | round << 56);
      const uint64_t next = left ^ ((uint64_t{w[0]} << 32 | w[1]) & mask);
      left = right;
      right = next;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);  // cycle walking: fewer than four tries on average
  return index;
}

}  // namespace transxssm
