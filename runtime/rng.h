// Counter-based random numbers (Philox 4x32-10; Salmon et al., SC 2011): a pure function of (seed, name,
// index), so that every rank of every mesh draws the same value for the same global element, and "RNG state"
// in a checkpoint is the seed.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace transxssm {

class Rng {
 public:
  // `name` is the stream: a parameter's name, "sampler", ...
  Rng(uint64_t seed, std::string_view name);
  // Four independent 32-bit words for one counter value.
  std::array<uint32_t, 4> words(uint64_t index) const;
  double uniform(uint64_t index) const;  // [0, 1), 53 bits
  double normal(uint64_t index) const;   // mean 0, variance 1; Box-Muller
  // Uniform in [0, bound), bound > 0; without modulo bias to within 2^-64.
  uint64_t below(uint64_t index, uint64_t bound) const;

 private:
  std::array<uint32_t, 2> key_;
  uint64_t stream_;
};

// A keyed pseudo-random permutation of [0, size): the image of one index in O(1) memory (a Feistel network
// with cycle walking). For size >= 1.
class Permutation {
 public:
  Permutation(uint64_t seed, std::string_view name, uint64_t size);
  uint64_t operator()(uint64_t index) const;

 private:
  Rng rng_;
  uint64_t size_;
  int half_bits_;
};

}  // namespace transxssm
