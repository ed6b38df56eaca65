// Blends weighted sources: which source sample n comes from, as a pure function of n, so that every rank and
// every resumed run agrees without a cursor to save. Two laws:
//
// Weights with (to 10^-9) a common denominator up to 2^16 (3 and 7; 0.3, 0.7) follow the rule of Megatron-LM:
// sample n comes from the source with the largest w_i * max(n, 1) - drawn_i, the first of equals. With
// weights m_i / M in whole numbers the order repeats after M samples: no share ever lags by -1 or less, so at
// n = M all lags are whole, not negative, and sum to zero. One period is tabulated once. (Only n = 0 differs
// from n = M: max(n, 1).)
//
// Other weights are whole numbers m_i of 2^-62 of their sum, and sources are split off one after the other,
// the smallest first: of the k samples that are left to it and all larger ones together (R is the sum of
// their m), a source gets the ones where round(k m / R) rises, half up. So a source of share p has round(p n)
// of the first n samples if it is the smallest, and any source is off by less than one sample plus its part
// of what the smaller ones are off. A source below 2^-62 of the sum has no share.
#pragma once

#include <cstdint>
#include <vector>

namespace transxssm {

class Blend {
 public:
  struct Draw {
    int source;
    int64_t index;  // how many samples of that source came before
  };
  Blend() : Blend({1.0}) {}
  // Weights > 0 and finite, in any unit; UsageError otherwise.
  explicit Blend(const std::vector<double>& weights);
  Draw operator()(int64_t sample) const;
  // How many of samples [0, n) come from each source.
  std::vector<int64_t> counts(int64_t n) const;
  int64_t period() const { return period_; }                              // M; 0 under the second law
  const std::vector<int64_t>& numerators() const { return numerators_; }  // m_i
  double share(int source) const;                                         // of the samples

 private:
  struct Entry {
    int32_t source;
    int32_t index;
  };
  // A source and the sum of it and all that are split off later.
  struct Split {
    int source;
    int64_t numerator, sum;
    int64_t before(int64_t k) const;  // samples of [0, k) that are its own
  };
  void tabulate();

  std::vector<int64_t> numerators_;
  int64_t sum_ = 1;
  int64_t period_ = 1;
  std::vector<Entry> first_, later_;  // of period 0, of all others
  std::vector<Split> splits_;         // the smallest first
};

}  // namespace transxssm
