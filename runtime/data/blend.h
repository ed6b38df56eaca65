// Blends weighted sources: sample n comes from the source with the largest w_i * max(n, 1) - drawn_i, the
// first of equals (the rule of Megatron-LM), so that every prefix of the order has the right shares to within
// one sample or two.
//
// With weights m_i / M in whole numbers the order repeats after M samples: no share ever lags by -1 or less,
// so at n = M all lags are whole, not negative, and sum to zero. One period is therefore tabulated once, and
// any sample number is answered in O(1) without a cursor to save. (Only n = 0 differs from n = M: max(n, 1).)
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
  // Weights > 0 in any unit; UsageError otherwise. Ratios with a common denominator up to 2^16 are kept
  // exactly, others are rounded to multiples of 2^-16 (at least one).
  explicit Blend(const std::vector<double>& weights);
  Draw operator()(int64_t sample) const;
  int64_t period() const { return period_; }                              // M
  const std::vector<int64_t>& numerators() const { return numerators_; }  // m_i, sum M

 private:
  std::vector<int64_t> numerators_;
  int64_t period_ = 1;
  struct Entry {
    int32_t source;
    int32_t index;
  };
  std::vector<Entry> first_, later_;  // of period 0, of all others
};

}  // namespace transxssm
